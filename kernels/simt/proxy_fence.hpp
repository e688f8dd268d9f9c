// fence.proxy.async: what the thread wrote by ordinary stores becomes visible to TMA and wgmma.
#pragma once

namespace simt {

void proxy_fence();

}  // namespace simt
