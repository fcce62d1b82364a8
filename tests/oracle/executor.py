"""Small networks with ONNX Runtime's answer to each.

usage: executor.py OUTDIR [MODEL.onnx …]

Each network in QDQ form is run in QOperator form too (NAME_qop), where there is one.

For each network: NAME.onnx, NAME.in (f32, [C, H, W]), NAME.out (f32, outputs one after the other), and one line in cases.json:
{"name", "is_float", "exact"}: `exact` says whether ONNX Runtime computes this network in integers by the rule of
docs/quantisation.md, so that every value must be equal; else a value may be one step off. Given models are run as well; they
have sums (see other_cases), so they count as not exact.
"""
import json, sys
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

OUT = sys.argv[1]
rng = np.random.default_rng(20240607)
flags = open("/proc/cpuinfo").read() if sys.platform == "linux" else ""
# Without these ONNX Runtime multiplies u8 by i8 with an instruction that saturates: exact only for small weights.
HAS_DOT = any(f in flags for f in ("avx512_vnni", "avx_vnni", "asimddp"))
CASES = []


class Net:
    """Builds a QDQ network. A quantised value is (name of its DequantizeLinear output, scale, zero point, shape)."""

    def __init__(self, shape=(8, 10, 12), scale=1 / 255, zp=0, dtype=np.uint8):
        self.nodes, self.inits, self.outputs, self.n, self.dtype, self.in_our_order = [], [], [], 0, dtype, {}
        self.input_shape = shape
        self.x = self.q("images", scale, zp, shape)

    def name(self, what):
        self.n += 1
        return f"{what}_{self.n}"

    def const(self, what, array):
        name = self.name(what)
        self.inits.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, op, inputs, n_out=1, **attributes):
        outs = [self.name(op.lower()) for _ in range(n_out)]
        self.nodes.append(helper.make_node(op, inputs, outs, name=self.name(op), **attributes))
        return outs if n_out > 1 else outs[0]

    def q(self, real, scale, zp, shape):
        """`zp` counts from the lowest value, as in u8."""
        s, z = self.const("scale", np.float32(scale)), self.const("zp", self.dtype(zp + np.iinfo(self.dtype).min))
        return (self.node("DequantizeLinear", [self.node("QuantizeLinear", [real, s, z]), s, z]), scale, zp, shape)

    def conv(self, x, out, k, scale, zp, act=None, stride=1, pads=None, group=1, dilation=1, wmax=None, bias=True, per_tensor=False, b_float=False, gain=60, w_zp=0, w_form="i8"):
        c = x[3][0]
        kh, kw = k if isinstance(k, tuple) else (k, k)
        wmax = wmax or (127 if HAS_DOT else 63)
        w = rng.integers(-wmax, wmax + 1, (out, c // group, kh, kw)).astype(np.int8)
        fan = c // group * kh * kw
        ws = rng.uniform(0.5, 1.5, out).astype(np.float32) * np.float32(scale * gain / (x[1] * wmax * 100 * fan ** 0.5))
        if w_form == "f32":  # Quantised in the file: QuantizeLinear of a constant.
            real = self.const("w", w.astype(np.float32) * ws[:, None, None, None])
            s, z = self.const("ws", ws), self.const("wz", np.zeros(out, np.int8))
            wd = self.node("DequantizeLinear", [self.node("QuantizeLinear", [real, s, z], axis=0), s, z], axis=0)
        elif w_form == "u8":
            w, zp8 = (w.astype(np.int16) + w_zp).astype(np.uint8), np.full(out, w_zp, np.uint8)
            wd = self.node("DequantizeLinear", [self.const("w", w), self.const("ws", ws), self.const("wz", zp8)], axis=0)
        elif per_tensor:
            wd = self.node("DequantizeLinear", [self.const("w", w), self.const("ws", ws[0]), self.const("wz", np.int8(0))])
            ws = np.repeat(ws[:1], out)
        else:
            wd = self.node("DequantizeLinear", [self.const("w", w), self.const("ws", ws), self.const("wz", np.zeros(out, np.int8))], axis=0)
        inputs = [x[0], wd]
        if bias:
            b = rng.integers(-3000, 3000, out).astype(np.int32)
            bs = (np.float32(x[1]) * ws).astype(np.float32)
            if b_float:
                inputs.append(self.const("b", (b * bs).astype(np.float32)))
            else:
                inputs.append(self.node("DequantizeLinear", [self.const("b", b), self.const("bs", bs), self.const("bz", np.zeros(out, np.int32))], axis=0))
        pads = pads if pads is not None else [dilation * (kh - 1) // 2, dilation * (kw - 1) // 2] * 2
        sy, sx = stride if isinstance(stride, tuple) else (stride, stride)
        y = self.node("Conv", inputs, kernel_shape=[kh, kw], strides=[sy, sx], pads=pads, group=group, dilations=[dilation, dilation])
        y = self.act(y, act)
        h = (x[3][1] + pads[0] + pads[2] - dilation * (kh - 1) - 1) // sy + 1
        v = (x[3][2] + pads[1] + pads[3] - dilation * (kw - 1) - 1) // sx + 1
        return self.q(y, scale, zp, (out, h, v))

    def act(self, y, act):
        if act == "relu":
            return self.node("Relu", [y])
        if isinstance(act, tuple):
            return self.node("Clip", [y, self.const("lo", np.float32(act[0])), self.const("hi", np.float32(act[1]))])
        return y

    def out(self, x):
        self.outputs.append(x)
        return self

    def save(self, name, exact=True, opset=13, restore=None):
        """`restore` brings the outputs into [C, H, W]."""
        graph_outs = []
        for i, x in enumerate(self.outputs):
            for node in self.nodes:
                node.output[:] = [f"out{i}" if o == x[0] else o for o in node.output]
                node.input[:] = [f"out{i}" if o == x[0] else o for o in node.input]
            graph_outs.append(helper.make_tensor_value_info(f"out{i}", TensorProto.FLOAT, [1, *x[3]]))
        graph = helper.make_graph(self.nodes, name, [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, *self.input_shape])], graph_outs, self.inits)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        _, s, z, shape = self.x
        picture = rng.uniform(-z * s, (255 - z) * s, shape)
        run(name, model.SerializeToString(), picture, False, exact, restore)
        qop = as_qop(model)
        if qop:
            run(name + "_qop", qop.SerializeToString(), picture, False, exact, restore)


MOVES = ("MaxPool", "Resize", "Split", "Reshape", "Transpose", "Unsqueeze", "Gather", "Slice")
CONTRIB = {"Add": "QLinearAdd", "Sigmoid": "QLinearSigmoid", "LeakyRelu": "QLinearLeakyRelu"}


def as_qop(model):
    """The same network of QLinear operators, as ONNX Runtime's quantiser writes them; None if something would stay in float."""
    g = model.graph
    made = {o: n for n in g.node for o in n.output}
    values = {i.name: numpy_helper.to_array(i) for i in g.initializer}
    same = lambda a, b: all(np.array_equal(values[x], values[y]) for x, y in zip(a, b))
    read = lambda real: list(made[real].input) if real in made and made[real].op_type == "DequantizeLinear" else None
    nodes, moved = [], {}
    for q in g.node:
        if q.op_type == "DequantizeLinear" and any(o.name == q.output[0] for o in g.output):
            nodes.append(q)
        if q.op_type == "Pad" and made[q.input[0]].op_type == "QuantizeLinear":
            nodes.append(q)  # It is of quantised values already.
        if q.op_type != "QuantizeLinear":
            continue
        op = made.get(q.input[0])
        if op is None:
            nodes.append(q)
            continue
        if op.op_type == "Relu" and made[op.input[0]].op_type in ("Conv", "Add") and values[q.input[2]] == np.iinfo(values[q.input[2]].dtype).min:
            op = made[op.input[0]]  # The range of the output is the ReLU.
        if op.op_type == "Conv" and made[op.input[1]].input[0] not in values:
            return None
        inputs = [read(x) for x in op.input]
        y = list(q.input[1:])
        if inputs[0] is None or op.op_type in ("Concat", *CONTRIB) and None in inputs:
            return None
        if op.op_type == "Conv":
            if len(inputs) > 2 and inputs[2] is None:
                return None
            new = helper.make_node("QLinearConv", inputs[0] + inputs[1] + y + [x[0] for x in inputs[2:]], [q.output[0]])
        elif op.op_type == "Concat" and op.attribute[0].i == 1:
            new = helper.make_node("QLinearConcat", y + sum(inputs, []), [q.output[0]], domain="com.microsoft")
        elif op.op_type in CONTRIB:
            new = helper.make_node(CONTRIB[op.op_type], sum(inputs, []) + y, [q.output[0]], domain="com.microsoft")
        elif op.op_type in MOVES and same(inputs[0][1:], y):
            if op.name in moved:
                moved[op.name].output[list(op.output).index(q.input[0])] = q.output[0]
                continue
            new = helper.make_node(op.op_type, [inputs[0][0], *op.input[1:]], [q.output[0] if o == q.input[0] else o for o in op.output])
            moved[op.name] = new
        else:
            return None
        new.name = op.name + "_quant"
        new.attribute.extend(op.attribute)
        nodes.append(new)
    if any(made[o.name].op_type != "DequantizeLinear" for o in g.output):
        return None
    used = {i for n in nodes for i in n.input}
    inits = [i for i in g.initializer if i.name in used]
    for i in inits:
        if list(i.dims) == [1] and i.name.split("_")[0] in ("scale", "zp", "ws", "wz"):
            del i.dims[:]  # A scalar: some of these operators take no other shape.
    graph = helper.make_graph(nodes, g.name, g.input, g.output, inits)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13), helper.make_opsetid("com.microsoft", 1)], ir_version=8)


def run(name, model, picture, is_float, exact, restore=None):
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    picture = np.ascontiguousarray(picture, np.float32)
    outs = session.run(None, {session.get_inputs()[0].name: picture[None]})
    outs = [restore(o) for o in outs] if restore else outs
    open(f"{OUT}/{name}.onnx", "wb").write(model)
    picture.tofile(f"{OUT}/{name}.in")
    np.concatenate([o.astype(np.float32).ravel() for o in outs]).tofile(f"{OUT}/{name}.out")
    CASES.append({"name": name, "is_float": is_float, "exact": exact})


def conv_cases():
    table = {
        "conv3x3_relu": dict(out=16, k=3, act="relu"),
        "conv3x3_stride2": dict(out=5, k=3, stride=2, zp=100),
        "conv1x1": dict(out=33, k=1, zp=7),
        "conv5x5": dict(out=8, k=5, zp=128),
        "conv3x5_strides": dict(out=6, k=(3, 5), stride=(2, 1), zp=31),
        "conv_groups2": dict(out=6, k=3, group=2, zp=90),
        "depthwise3x3": dict(out=8, k=3, group=8, zp=128),
        "depthwise5x5_stride2": dict(out=8, k=5, group=8, stride=2, zp=40),
        "depthwise_multiplier2": dict(out=16, k=3, group=8, zp=128),
        "conv_dilation2": dict(out=9, k=3, dilation=2, zp=255),
        "conv_asymmetric_pads": dict(out=7, k=3, stride=2, pads=[0, 0, 1, 1], zp=64),
        "conv_no_pads": dict(out=7, k=4, pads=[0, 0, 0, 0], zp=64),
        "conv_no_bias": dict(out=12, k=3, bias=False, zp=120),
        "conv_per_tensor": dict(out=12, k=3, per_tensor=True, zp=120),
        "conv_clamps": dict(out=12, k=3, scale=0.002, zp=128),
        "conv_one_channel_out": dict(out=1, k=3, zp=128),
    }
    for name, spec in table.items():
        for zp in (0, 13):
            spec = dict({"scale": 0.02, "zp": 0}, **spec)
            net = Net(scale=0.01, zp=zp)
            net.out(net.conv(net.x, **spec)).save(f"{name}_zp{zp}")
    # ReLU with a zero point above 0, and a clip inside the range: ONNX Runtime leaves these in float.
    for name, act, zp in [("relu_above_zero_point", "relu", 50), ("clip_inside", (0.0, 2.0), 0), ("clip_both", (-0.5, 1.5), 80)]:
        net = Net(scale=0.01, zp=3)
        net.out(net.conv(net.x, 9, 3, 0.02, zp, act=act)).save(f"conv_{name}", exact=False)
    net = Net(scale=0.01, zp=3)
    net.out(net.conv(net.x, 9, 3, 0.02, 0, b_float=True)).save("conv_float_bias", exact=False)
    # Deep and wide: accumulators with more than 24 bits, so that their conversion to f32 rounds.
    net = Net(shape=(8, 5, 6), scale=0.01, zp=0)
    net.out(net.conv(net.conv(net.x, 512, 1, 0.01, 0, act="relu"), 24, 3, 0.05, 128)).save("conv_wide")


def other_cases():
    def two(zp=20):
        net = Net(scale=0.01, zp=5)
        return net, net.conv(net.x, 8, 3, 0.02, zp), net.conv(net.x, 8, 1, 0.013, 140)

    # ONNX Runtime folds the zero points of a sum into one constant and rounds in another order: near halves it may go the other way.
    for name, act, zp in [("add", None, 77), ("add_relu", "relu", 0)]:
        net, a, b = two()
        net.out(net.q(net.act(net.node("Add", [a[0], b[0]]), act), 0.027, zp, a[3])).save(name, exact=False)
    net, a, b = two()
    net.out(net.q(net.act(net.node("Add", [a[0], b[0]]), "relu"), 0.027, 30, a[3])).save("add_relu_above_zero_point", exact=False)
    net, a, b = two()
    net.out(net.q(net.node("Concat", [a[0], b[0]], axis=1), 0.022, 60, (16, 10, 12))).save("concat_rescale")
    net = Net(scale=0.01, zp=5)
    a, b = net.conv(net.x, 8, 3, 0.02, 9), net.conv(net.x, 3, 1, 0.02, 9)
    net.out(net.q(net.node("Concat", [a[0], b[0]], axis=1), 0.02, 9, (11, 10, 12))).save("concat_same")
    for name, mode, nearest in [("asymmetric", "asymmetric", "floor"), ("half_pixel", "half_pixel", "round_prefer_floor")]:
        net = Net(scale=0.01, zp=5)
        a = net.conv(net.x, 8, 3, 0.02, 9)
        r = net.node("Resize", [a[0], "", net.const("scales", np.array([1, 1, 2, 2], np.float32))], mode="nearest", coordinate_transformation_mode=mode, nearest_mode=nearest)
        net.out(net.q(r, 0.02, 9, (8, 20, 24))).save(f"resize_{name}")
    net = Net(scale=0.01, zp=5)
    a = net.conv(net.x, 8, 3, 0.02, 9)
    r = net.node("Resize", [a[0], "", "", net.const("sizes", np.array([1, 8, 20, 24], np.int64))], mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    net.out(net.q(r, 0.03, 2, (8, 20, 24))).save("resize_rescale", exact=False)
    for name, k, stride, pads, shape in [("3x3s2", 3, 2, [1, 1, 1, 1], (8, 5, 6)), ("2x2", 2, 2, [0, 0, 0, 0], (8, 5, 6)), ("3x3_asymmetric", 3, 2, [0, 0, 1, 1], (8, 5, 6))]:
        net = Net(scale=0.01, zp=5)
        a = net.conv(net.x, 8, 3, 0.02, 130)
        p = net.node("MaxPool", [a[0]], kernel_shape=[k, k], strides=[stride, stride], pads=pads)
        net.out(net.q(p, 0.02, 130, shape)).save(f"maxpool_{name}")
    # Split, shuffle as ShuffleNetV2 has it: half passes, half is convolved, joined and shuffled.
    net = Net(scale=0.01, zp=5)
    a = net.conv(net.x, 8, 1, 0.02, 9)
    left, right = net.node("Split", [a[0], net.const("parts", np.array([4, 4], np.int64))], n_out=2, axis=1)
    left, right = net.q(left, 0.02, 9, (4, 10, 12)), net.q(right, 0.02, 9, (4, 10, 12))
    right = net.conv(right, 4, 3, 0.025, 0, act="relu")
    joined = net.q(net.node("Concat", [left[0], right[0]], axis=1), 0.025, 9, (8, 10, 12))
    five = net.q(net.node("Reshape", [joined[0], net.const("to5", np.array([1, 2, 4, 10, 12], np.int64))]), 0.025, 9, (2, 4, 10, 12))
    turned = net.q(net.node("Transpose", [five[0]], perm=[0, 2, 1, 3, 4]), 0.025, 9, (4, 2, 10, 12))
    four = net.q(net.node("Reshape", [turned[0], net.const("to4", np.array([1, -1, 10, 12], np.int64))]), 0.025, 9, (8, 10, 12))
    net.out(net.conv(four, 6, 1, 0.02, 128)).out(four).save("shuffle_unit")
    net = Net(scale=0.01, zp=5)
    a = net.conv(net.x, 7, 1, 0.02, 9)
    parts = net.node("Split", [a[0], net.const("parts", np.array([3, 4], np.int64))], n_out=2, axis=1)
    net.out(net.q(parts[0], 0.02, 9, (3, 10, 12))).out(net.q(parts[1], 0.02, 9, (4, 10, 12))).save("split_unequal")
    # Functions of one value: tables here, polynomials or tables there.
    for name, op, attributes, scale, zp in [("sigmoid", "Sigmoid", {}, 1 / 256, 0), ("leaky_relu", "LeakyRelu", {"alpha": 0.1}, 0.02, 20), ("hard_sigmoid", "HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}, 1 / 255, 0), ("relu", "Relu", {}, 0.015, 0)]:
        net = Net(scale=0.01, zp=5)
        a = net.conv(net.x, 8, 3, 0.03, 128)
        net.out(net.q(net.node(op, [a[0]], **attributes), scale, zp, a[3])).save(name, exact=False)
    net = Net(scale=0.01, zp=5)
    a = net.conv(net.x, 8, 3, 0.03, 128)
    net.out(net.q(a[0], 0.02, 90, a[3])).save("requantise", exact=False)
    def pyramid(depth):
        net = Net(shape=(3, 32, 48), scale=1 / 255, zp=0)
        conv = lambda *args, **options: net.conv(*args, **options, gain=150)
        q = net.q
        stem = conv(net.x, 16, 3, 0.02, 0, act="relu", stride=2)
        pool = q(net.node("MaxPool", [stem[0]], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), 0.02, 0, (16, 8, 12))
        if depth == 0: return net, [pool]
        a = conv(pool, 16, 3, 0.02, 0, act="relu")
        a = conv(a, 16, 3, 0.03, 120)
        if depth == 1: return net, [a]
        res = q(net.node("Relu", [net.node("Add", [a[0], pool[0]])]), 0.03, 0, a[3])
        if depth == 2: return net, [res]
        low = conv(res, 24, 3, 0.03, 0, act="relu", stride=2)
        top = conv(low, 16, 1, 0.04, 128)
        if depth == 3: return net, [top]
        lateral = conv(res, 16, 1, 0.035, 110)
        if depth == 4: return net, [top, lateral]
        up = net.node("Resize", [top[0], "", net.const("scales", np.array([1, 1, 2, 2], np.float32))], mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
        up = q(up, 0.04, 128, (16, 8, 12))
        if depth == 5: return net, [up, lateral]
        p = q(net.node("Add", [lateral[0], up[0]]), 0.05, 125, (16, 8, 12))
        if depth == 6: return net, [p]
        return net, [conv(p, 18, 3, 0.06, 200), conv(p, 8, 3, 0.01, 127), conv(top, 8, 3, 0.01, 127)]

    # A small pyramid with residual and top-down path, cut off ever later: errors would travel.
    for depth in range(8):
        net, outputs = pyramid(depth)
        for x in outputs:
            net.out(x)
        net.save(f"pyramid{depth}", exact=depth < 6)


def pattern_cases():
    """The other ways to write things."""
    def start(c=8, scale=0.03, zp=128, **options):
        net = Net(scale=0.01, zp=5, **options)
        return net, net.conv(net.x, c, 3, scale, zp)

    # Activations in i8: ONNX Runtime leaves the QDQ form in float on some machines.
    net = Net(scale=0.01, zp=30, dtype=np.int8)
    net.out(net.conv(net.conv(net.x, 16, 3, 0.02, 0, act="relu"), 9, 3, 0.02, 140)).save("s8_conv", exact=False)
    net = Net(scale=0.01, zp=128, dtype=np.int8)
    a, b = net.conv(net.x, 8, 3, 0.02, 20), net.conv(net.x, 8, 1, 0.013, 140)
    net.out(net.q(net.node("Add", [a[0], b[0]]), 0.027, 77, a[3])).out(net.q(net.node("Concat", [a[0], b[0]], axis=1), 0.022, 60, (16, 10, 12))).save("s8_add_concat", exact=False)
    # Weights: u8 around 128, u8 whose values are close to another zero point, quantised in the file.
    for name, options in [("u8_128", dict(w_form="u8", w_zp=128)), ("u8_70", dict(w_form="u8", w_zp=70, wmax=60)), ("in_file", dict(w_form="f32"))]:
        net = Net(scale=0.01, zp=13)
        net.out(net.conv(net.x, 9, 3, 0.02, 100, **options)).save(f"weights_{name}", exact=False)
    # Functions of one value.
    net, a = start()
    s = net.q(net.node("Sigmoid", [a[0]]), 1 / 256, 0, a[3])
    net.out(net.q(net.node("Mul", [a[0], s[0]]), 0.02, 20, a[3])).save("silu_quantised_inside", exact=False)
    net, a = start()
    net.out(net.conv(net.q(net.node("Mul", [a[0], net.node("Sigmoid", [a[0]])]), 0.02, 20, a[3]), 6, 3, 0.05, 128)).save("silu", exact=False)
    net, a = start()
    net.out(net.q(net.node("HardSwish", [a[0]]), 0.02, 20, a[3])).save("hard_swish", exact=False, opset=14)
    net, a = start()
    s = net.q(net.node("HardSigmoid", [a[0]], alpha=1 / 6, beta=0.5), 1 / 255, 0, a[3])
    net.out(net.q(net.node("Mul", [s[0], a[0]]), 0.02, 20, a[3])).save("hard_sigmoid_mul", exact=False)
    net, a = start()
    number = lambda x: net.const("number", np.float32(x))
    six = net.node("Clip", [net.node("Add", [a[0], number(3)]), number(0), number(6)])
    net.out(net.q(net.node("Mul", [a[0], net.node("Div", [six, number(6)])]), 0.02, 20, a[3])).save("hard_swish_in_parts", exact=False)
    for name, op, inputs in [("mul", "Mul", [-0.7]), ("add", "Add", [0.31]), ("sub", "Sub", [0.31]), ("prelu", "PRelu", [0.2]), ("tanh", "Tanh", [])]:
        net, a = start()
        net.out(net.q(net.node(op, [a[0]] + [net.const("number", np.array([x], np.float32)) for x in inputs]), 0.02, 120, a[3])).save(f"function_{name}", exact=False)
    net, a = start()
    c = net.node("DequantizeLinear", [net.const("factor", np.uint8(200)), net.const("s", np.float32(0.004)), net.const("z", np.uint8(3))])
    net.out(net.q(net.node("Mul", [c, a[0]]), 0.02, 120, a[3])).save("function_mul_quantised", exact=False)
    net, a = start()
    c = net.node("DequantizeLinear", [net.const("factor", np.int8(-90)), net.const("s", np.float32(0.008))])
    net.out(net.q(net.node("Mul", [c, a[0]]), 0.02, 120, a[3])).save("function_mul_quantised_s8", exact=False)
    net, a = start()
    net.out(net.q(net.node("Add", [a[0], net.node("Sigmoid", [a[0]])]), 0.02, 60, a[3])).save("function_add", exact=False)
    net, a = start()
    factors = net.const("factors", np.array([1, -0.5, 0.25, 0, 2, -1, 0.1, 0.7], np.float32).reshape(1, 8, 1, 1))
    net.out(net.q(net.node("Mul", [a[0], factors]), 0.03, 120, a[3])).save("mul_channels", exact=False)
    # Padding before a convolution, with and without a step of quantisation, on top of the convolution's own.
    for name, quantised in [("pad_quantised", True), ("pad", False)]:
        net, a = start(zp=77)
        p = net.node("Pad", [a[0], net.const("pads", np.array([0, 0, 1, 0, 0, 0, 2, 3], np.int64)), net.const("zero", np.float32(0))])
        p = net.q(p, a[1], a[2], (8, 13, 15)) if quantised else (p, a[1], a[2], (8, 13, 15))
        net.out(net.conv(p, 6, 3, 0.05, 128, pads=[0, 1, 0, 1])).save(name)
    # The same between quantised values, where zeros are zero points.
    net, a = start(zp=77)
    point, scale = net.const("point", np.uint8(77)), net.const("scale", np.float32(a[1]))
    p = net.node("Pad", [net.nodes[-2].output[0], net.const("pads", np.array([0, 0, 1, 0, 0, 0, 2, 3], np.int64)), point])
    p = net.node("DequantizeLinear", [p, scale, point])
    net.out(net.conv((p, a[1], a[2], (8, 13, 15)), 6, 3, 0.05, 128)).save("pad_of_quantised")
    # What moves values may stand in float.
    net, a = start(scale=0.02, zp=9)
    p = net.node("MaxPool", [net.node("Identity", [a[0]])], kernel_shape=[2, 2], strides=[2, 2])
    r = net.node("Resize", [p, "", net.const("scales", np.array([1, 1, 2, 2], np.float32))], mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    net.out(net.conv((r, a[1], a[2], (8, 10, 12)), 6, 3, 0.05, 128)).save("moves_in_float", exact=False)
    # The channel shuffle in its other spellings, and a range of channels.
    def halves(form):
        net, a = start(scale=0.02, zp=9)
        b = net.conv(net.x, 8, 1, 0.025, 0, act="relu")
        to4 = net.const("to4", np.array([1, 16, 10, 12], np.int64))
        if form == "stack":
            two = net.const("axes", np.array([2], np.int64))
            a5, b5 = (net.q(net.node("Unsqueeze", [x[0], two]), x[1], x[2], (8, 1, 10, 12)) for x in (a, b))
            joined = net.q(net.node("Concat", [a5[0], b5[0]], axis=2), 0.025, 9, (8, 2, 10, 12))
            return net, net.q(net.node("Reshape", [joined[0], to4]), 0.025, 9, (16, 10, 12))
        joined = net.q(net.node("Concat", [a[0], b[0]], axis=1), 0.025, 9, (16, 10, 12))
        if form == "gather":
            order = net.const("order", np.arange(16).reshape(2, 8).T.ravel().copy())
            return net, net.q(net.node("Gather", [joined[0], order], axis=1), 0.025, 9, (16, 10, 12))
        five = net.node("Reshape", [joined[0], net.const("to5", np.array([1, 2, 8, 10, 12], np.int64))])
        return net, net.q(net.node("Reshape", [net.node("Transpose", [five], perm=[0, 2, 1, 3, 4]), to4]), 0.025, 9, (16, 10, 12))

    for form in ("stack", "gather", "in_float"):
        net, x = halves(form)
        net.out(x).out(net.conv(x, 6, 1, 0.02, 128)).save(f"shuffle_{form}")
    net, a = start(c=12, scale=0.02, zp=9)
    numbers = lambda *n: net.const("n", np.array(n, np.int64))
    s = net.q(net.node("Slice", [a[0], numbers(-5), numbers(2**40), numbers(1)]), 0.02, 9, (5, 10, 12))
    g = net.q(net.node("Gather", [a[0], numbers(3, 4, 5, 6)], axis=1), 0.02, 9, (4, 10, 12))
    net.out(s).out(g).save("slice_gather")
    # Heads turned as torchvision and others turn them: values in [H, W, C] order.
    for name, op in [("float", None), ("quantised", "q")]:
        net, a = start(c=12, scale=0.02, zp=9)
        step = (lambda real: net.q(real, 0.02, 9, None)[0]) if op else (lambda real: real)
        turned = step(net.node("Transpose", [step(net.node("Reshape", [a[0], net.const("to5", np.array([1, 3, 4, 10, 12], np.int64))]))], perm=[0, 3, 4, 1, 2]))
        rows = step(net.node("Reshape", [turned, net.const("rows", np.array([1, -1, 4], np.int64))]))
        flat = step(net.node("Flatten", [step(net.node("Transpose", [a[0]], perm=[0, 2, 3, 1]))]))
        net.out((rows, 0, 0, (360, 4))).out((flat, 0, 0, (1440,))).save(f"heads_turned_{name}", restore=lambda o: o.reshape(10, 12, 12).transpose(2, 0, 1))


def float_cases():
    def conv(x, c, out, k, **attributes):
        name = f"c{len(nodes)}"
        inits.append(numpy_helper.from_array((rng.standard_normal((out, c, k, k)) / (c * k * k) ** 0.5).astype(np.float32), name + "w"))
        inits.append(numpy_helper.from_array(rng.standard_normal(out).astype(np.float32), name + "b"))
        nodes.append(helper.make_node("Conv", [x, name + "w", name + "b"], [name], name=name, kernel_shape=[k, k], pads=[k // 2] * 4, **attributes))
        return name

    nodes, inits = [], []
    x = conv("images", 3, 16, 3, strides=[2, 2])
    nodes.append(helper.make_node("Relu", [x], ["r"], name="r"))
    x = conv("r", 16, 16, 3)
    nodes.append(helper.make_node("Add", [x, "r"], ["s"], name="s"))
    top = conv("s", 16, 16, 3, strides=[2, 2])
    inits.append(numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"))
    nodes.append(helper.make_node("Resize", [top, "", "scales"], ["u"], name="u", mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"))
    nodes.append(helper.make_node("Add", ["u", "s"], ["p"], name="p"))
    a, b = conv("p", 16, 18, 3), conv(top, 16, 8, 1)
    info = lambda n, *s: helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, *s])
    graph = helper.make_graph(nodes, "float", [info("images", 3, 32, 48)], [info(a, 18, 16, 24), info(b, 8, 8, 12)], inits)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    run("float", model.SerializeToString(), rng.uniform(0, 1, (3, 32, 48)), True, False)


conv_cases()
other_cases()
pattern_cases()
float_cases()
for i, path in enumerate(sys.argv[2:]):
    model = open(path, "rb").read()
    graph = onnx.load_model_from_string(model).graph
    shape = [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim][1:]
    blocks = rng.integers(0, 256, (shape[0], -(-shape[1] // 8), -(-shape[2] // 8)))
    picture = np.kron(blocks, np.ones((1, 8, 8)))[:, : shape[1], : shape[2]] + rng.integers(-9, 10, shape)
    is_float = not any(n.op_type == "QuantizeLinear" for n in graph.node)
    consts = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    first = [n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] == graph.input[0].name]
    scale, zp = (consts[name].item() for name in first[0].input[1:3]) if first else (1 / 255, 0)
    zp += 128 if first and consts[first[0].input[2]].dtype == np.int8 else 0
    run(f"model{i}", model, (np.clip(picture, 0, 255) - zp) * scale, is_float, False)
json.dump(CASES, open(f"{OUT}/cases.json", "w"))
