"""A convolution in PyTorch: every way that could be its best, what a step does around it by separate ops, and cuDNN's graphs.
Imported by conv3d.py, which times them."""
import torch


class Conv:
    """A row's sizes, and each way to do it. Tensors are [n, c, t, h, w]; where their memory is channels-last, conv2d and the
    matrix product see the same memory through other sizes."""

    def __init__(self, row):
        self.n, self.t, self.h, self.w, _ = row["input"]
        self.c_in, self.c_out = row["c_in"], row["c_out"]
        self.filter, self.stride, self.padding = row["filter"], row["stride"], row["padding"]
        self.dilation, self.groups = row["dilation"], row["groups"]
        sizes = zip((self.t, self.h, self.w), self.filter, self.stride, self.padding, self.dilation)
        self.out = [(size + 2 * p - d * (f - 1) - 1) // s + 1 for size, f, s, p, d in sizes]

    def tensors(self, args, memory_format):
        """x, filter, gradient of the output."""
        def random(*shape):
            return torch.randn(shape, device=args.device, dtype=args.torch_dtype).to(memory_format=memory_format)
        x = random(self.n, self.c_in, self.t, self.h, self.w)
        f = random(self.c_out, self.c_in // self.groups, *self.filter)
        return x, f, random(self.n, self.c_out, *self.out)

    def folds(self):
        """name -> (memory format, what x and dy are seen as, what the filter is seen as, stride, padding, dilation)."""
        s, p, d = self.stride, self.padding, self.dilation
        same = lambda tensor: tensor
        last = torch.channels_last_3d
        ways = {"conv3d channels-last": (last, same, same, s, p, d),
                "conv3d contiguous": (torch.contiguous_format, same, same, s, p, d)}
        is_pointwise_in_t = (self.filter[0], s[0], p[0]) == (1, 1, 0)
        is_pointwise_in_hw = (self.filter[1:], s[1:], p[1:]) == ([1, 1], [1, 1], [0, 0])
        if is_pointwise_in_t:
            ways["conv2d over n*t"] = (last, lambda x: rows(x).flatten(0, 1).permute(0, 3, 1, 2), lambda f: f[:, :, 0],
                                       s[1:], p[1:], d[1:])
        if is_pointwise_in_hw and not is_pointwise_in_t:
            ways["conv2d over h*w"] = (last, lambda x: rows(x).flatten(2, 3).permute(0, 3, 1, 2), lambda f: f[..., 0],
                                       [s[0], 1], [p[0], 0], [d[0], 1])
        if is_pointwise_in_t and is_pointwise_in_hw and self.groups == 1:
            ways["matmul"] = (last, lambda x: rows(x).flatten(0, 3), lambda f: f[:, :, 0, 0, 0], None, None, None)
        return ways

    def run(self, way, direction):
        """A function of (x, filter, dy) for one of `folds`."""
        _, see, see_filter, stride, padding, dilation = way
        if stride is None:
            return {"forward": lambda x, f, dy: x @ f.t(), "grad_input": lambda x, f, dy: dy @ f,
                    "grad_filter": lambda x, f, dy: dy.t() @ x}[direction]
        conv = torch.conv2d if len(stride) == 2 else torch.conv3d
        if direction == "forward":
            return lambda x, f, dy: conv(x, f, None, stride, padding, dilation, self.groups)
        mask = [direction == "grad_input", direction == "grad_filter", False]
        which = mask.index(True)

        def backward(x, f, dy):
            return torch.ops.aten.convolution_backward(
                dy, x, f, None, stride, padding, dilation, False, [0] * len(stride), self.groups, mask)[which]
        return backward

    def ways(self, args, direction):
        """name -> a call of it, on tensors of its own layout."""
        tensors, calls = {}, {}
        for name, way in self.folds().items():
            if way[0] not in tensors:
                tensors[way[0]] = self.tensors(args, way[0])
            x, f, dy = tensors[way[0]]
            seen = way[1](x), way[2](f), way[1](dy)
            run = self.run(way, direction)
            calls[name] = lambda run=run, seen=seen: run(*seen)
        return calls


def rows(x):
    """[n, c, t, h, w] as [n, t, h, w, c]: a view of channels-last memory."""
    return x.permute(0, 2, 3, 4, 1)


# -- what surrounds a convolution in a step, by separate ops

class Norm:
    """A batch norm of `c` channels: PyTorch's own pieces on a GPU, the formulas elsewhere."""

    def __init__(self, args, c):
        self.is_cuda = args.device == "cuda"
        self.vectors = [torch.randn(c, device=args.device) for _ in range(6)]
        self.count = torch.ones(1, device=args.device, dtype=torch.int32)

    def shaped(self, i):
        return self.vectors[i].view(1, -1, 1, 1, 1)

    def apply(self, x):
        weight, bias, mean, invstd, _, _ = self.vectors
        if self.is_cuda:
            return torch.batch_norm_elemt(x, weight, bias, mean, invstd, 1e-5)
        return x * self.shaped(0) + self.shaped(1)

    def statistics(self, y):
        return torch.batch_norm_stats(y, 1e-5) if self.is_cuda else torch.var_mean(y, (0, 2, 3, 4))

    def gradient(self, g, y):
        weight, _, mean, invstd, sum_dy, sum_dy_xmu = self.vectors
        if self.is_cuda:
            return torch.batch_norm_backward_elemt(g, y, mean, invstd, weight, sum_dy, sum_dy_xmu, self.count)
        return g * self.shaped(0) + y * self.shaped(1) + self.shaped(2)

    def sums(self, g, y):
        weight, _, mean, invstd, _, _ = self.vectors
        if self.is_cuda:
            return torch.batch_norm_backward_reduce(g, y, mean, invstd, weight, True, True, True)
        return g.sum((0, 2, 3, 4)), (g * y).sum((0, 2, 3, 4))


def separate_ops(args, conv, row, way):
    """The row's fused work around the convolution's best way. grad_filter reads what forward and grad_input have stored."""
    fusion, direction = row["fusion"], row["direction"]
    memory_format, see, see_filter = way[:3]
    x, f, dy = conv.tensors(args, memory_format)
    run, seen_filter = conv.run(way, direction), see_filter(f)
    if direction == "grad_filter":
        seen = see(x), seen_filter, see(dy)
        if fusion["bias"]:
            return lambda: (run(*seen), dy.sum((0, 2, 3, 4)))
        return lambda: run(*seen)
    residual = torch.randn_like(x)
    before, shortcut, after = (Norm(args, c) for c in (conv.c_in, conv.c_in, conv.c_out))
    seen_x, seen_dy = see(x), see(dy)
    y, bias = torch.randn_like(dy), torch.randn(1, conv.c_out, 1, 1, 1, device=args.device, dtype=args.torch_dtype)
    like_x = lambda seen: seen.view(conv.n, conv.t, conv.h, conv.w, -1).permute(0, 4, 1, 2, 3)
    like_y = lambda seen: seen.view(conv.n, *conv.out, -1).permute(0, 4, 1, 2, 3)

    def whole(seen, like):
        """The convolution's result as [n, c, t, h, w]."""
        if seen.dim() == 5:
            return seen
        return like(seen if seen.dim() == 2 else seen.permute(0, 2, 3, 1))

    def forward():
        value = x
        if fusion["input"] != "stored":
            value = before.apply(x)
            if fusion["input"].startswith("join"):
                value.add_(shortcut.apply(residual) if "norm" in fusion["input"] else residual)
            value.relu_()
        out = whole(run(see(value), seen_filter, seen_dy), like_y)
        if fusion["bias"]:
            out.add_(bias)
        return after.statistics(out) if fusion["statistics"] else out

    def grad_input():
        grad = after.gradient(dy, y) if fusion["grad_norm"] else dy
        dx = whole(run(seen_x, seen_filter, see(grad)), like_x)
        if fusion["accumulate"]:
            dx = dx.add_(residual)
        if fusion["mask"] != "none":
            dx = torch.ops.aten.threshold_backward(dx, x, 0)
        return [norm.sums(dx, value) for norm, value in ((before, x), (shortcut, residual))[: fusion["norms"]]] or dx

    return forward if direction == "forward" else grad_input


# -- cuDNN's graphs

class Graphs:
    """cuDNN's graph fusions through its Python frontend, in f16; `why_not` says why there are none."""

    def __init__(self, args):
        self.why_not, self.cudnn = None, None
        if args.device != "cuda" or args.dtype != "f16":
            self.why_not = "cuDNN's graphs: timed with --dtype f16 on a GPU only"
            return
        try:
            import cudnn
            self.cudnn, self.handle = cudnn, cudnn.create_handle()
            cudnn.set_stream(handle=self.handle, stream=torch.cuda.current_stream().cuda_stream)
        except Exception as error:  # a broken installation must not end the comparison
            self.cudnn = None
            self.why_not = f"cuDNN's graphs: the package nvidia-cudnn-frontend cannot be used ({error})"

    def call(self, args, conv, row):
        """(call, None), or (None, why there is no graph for this row)."""
        fusion, direction = row["fusion"], row["direction"]
        if self.cudnn is None:
            return None, self.why_not
        if direction == "grad_input" or fusion["input"].startswith("join"):
            return None, "cuDNN's Python frontend has no graph for a join or for the sums of grad_input"
        if fusion["input"] == "stored" and not fusion["statistics"]:
            return None, "nothing to fuse"
        try:
            return self.build(args, conv, fusion, direction), None
        except Exception as error:  # cuDNN says in many types that it has no engine for a graph
            return None, f"cuDNN's graph: {str(error).splitlines()[0] if str(error) else type(error).__name__}"

    def build(self, args, conv, fusion, direction):
        cudnn = self.cudnn
        name = next((n for n in ("conv2d over n*t", "conv2d over h*w") if n in conv.folds()), "conv3d channels-last")
        way = conv.folds()[name]
        _, see, see_filter, stride, padding, dilation = way
        x, f, dy = conv.tensors(args, way[0])
        memory = {"x": see(x), "filter": see_filter(f), "dy": see(dy)}
        vector = [1, conv.c_in] + [1] * len(stride)
        for key in ("scale", "shift"):
            memory[key] = torch.randn(vector, device="cuda", dtype=torch.float16)
        graph = cudnn.pygraph(io_data_type=cudnn.data_type.HALF, intermediate_data_type=cudnn.data_type.FLOAT,
                              compute_data_type=cudnn.data_type.FLOAT, handle=self.handle)
        nodes = {}

        def node(key):
            if key not in nodes:
                m = memory[key]
                nodes[key] = graph.tensor(name=key, dim=list(m.size()), stride=list(m.stride()), data_type=cudnn.data_type.HALF)
            return nodes[key]

        image = node("x")
        if fusion["input"] == "norm":
            image = graph.relu(input=graph.bias(input=graph.scale(input=image, scale=node("scale")), bias=node("shift")))
        sizes = dict(padding=padding, stride=stride, dilation=dilation)
        results = {}
        if direction == "forward":
            out = graph.conv_fprop(image=image, weight=node("filter"), **sizes)
            out.set_output(True)
            results[out] = torch.empty_like(memory["dy"])
            if fusion["statistics"]:
                for total in graph.genstats(input=out):
                    total.set_output(True).set_data_type(cudnn.data_type.FLOAT)
                    results[total] = torch.empty(conv.c_out, device="cuda")
        else:
            out = graph.conv_wgrad(image=image, loss=node("dy"), **sizes)
            out.set_output(True).set_dim(list(memory["filter"].size()))
            results[out] = torch.empty_like(memory["filter"])
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        graph.check_support()
        graph.build_plans()
        workspace = torch.empty(max(graph.get_workspace_size(), 1), device="cuda", dtype=torch.uint8)
        pack = {nodes[key]: memory[key] for key in nodes}
        pack.update(results)
        return lambda: graph.execute(pack, workspace, handle=self.handle)
