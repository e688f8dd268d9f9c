// The registry of kernels, filled by one SIMT_EXPORT line a kernel.
#pragma once
#include <cstddef>
#include <type_traits>
#include <utility>

namespace simt {

struct Kernel {
    const char* name;
    void (*entry)(void** arguments);  // calls the kernel on the values that `arguments` point to
    const size_t* argument_bytes;
    size_t num_arguments;
};

void register_kernel(const Kernel& kernel);

template <auto K>
struct Exported;

template <class... A, void (*K)(A...)>
struct Exported<K> {
    static constexpr size_t bytes[] = {sizeof(A)..., 0};

    template <size_t... I>
    static void call(void** arguments, std::index_sequence<I...>) {
        K(*static_cast<std::remove_cv_t<std::remove_reference_t<A>>*>(arguments[I])...);
    }
    static void entry(void** arguments) { call(arguments, std::index_sequence_for<A...>{}); }

    explicit Exported(const char* name) { register_kernel({name, entry, bytes, sizeof...(A)}); }
};

}  // namespace simt

#define SIMT_EXPORT(kernel) static const simt::Exported<kernel> simt_export_##kernel(#kernel);
