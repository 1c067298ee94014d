"""Model files that break what their runs rely on: what is changed of a good one, the check that
fails, and its sentence."""

from model_files import LAST

FUTURE = (
    "the model sees the future: with other tokens from position 1 on, its output at position 0 is"
    " another (in train mode): let each position depend on itself and those before it alone: look"
    " at masks, shifts, and means or norms over the time axis"
)
MIXED = (
    "rows of a batch are mixed: a row's outputs are others beside other rows (in train mode): let"
    " no norm, mean or reshape go over the batch"
)
NO_DRAWS = "forward draws random numbers, or seeds them: take that out: runs are exactly repeatable"
KEEPS = (
    "other outputs for the same tokens after a call with other tokens: keep nothing from one call"
    " to the next: batches are independent"
)
LEAVE = "leave that as it is: it is the run's, and every other run's in this process"
TOO_LARGE = "begin with a smaller output layer, as with a standard deviation of 0.02"
NO_GRADIENT = "use them in forward, take them out, or name them in `without_gradient`"
IN_FORWARD = "forward of tokens (1, 16)"

# {what is wrong: (changes of MODEL, the check that fails, its sentence after the file's name)}
BAD = {
    # ---- the file
    "an error at import": (
        [("# top", "import no_such_package")],
        "imports",
        ":{line}: importing it fails (ModuleNotFoundError: No module named 'no_such_package')",
    ),
    "a seed at import": (
        [("# top", "torch.manual_seed(0)\ntorch.randn(3)")],
        "imports",
        f": importing it changes torch's random numbers: {LEAVE}",
    ),
    "a default dtype": (
        [("# top", "torch.set_default_dtype(torch.float64)")],
        "imports",
        f": importing it changes torch's default dtype: {LEAVE}",
    ),
    "threads": (
        [("# top", "torch.set_num_threads(torch.get_num_threads() + 1)")],
        "imports",
        f": importing it changes torch's number of threads: {LEAVE}",
    ),
    "prints": (
        [("# top", "print('ready')")],
        "imports",
        ": importing it prints 'ready': take that out: every rank would print it",
    ),
    "writes": (
        [("# top", "open(__file__ + '.log', 'w').close()")],
        "imports",
        ": importing it writes {folder}/model.py.log: take that out: every rank would write it",
    ),
    "no build": (
        [("def build(shape, base=1.0):", "def make(shape, base=1.0):")],
        "imports",
        " defines no build: define build(shape, **options) -> nn.Module",
    ),
    # ---- build
    "an error in build": (
        [("# built", "model.blocks[7]")],
        "builds",
        ":{line}: build fails (IndexError: index 7 is out of range)",
    ),
    "no module": (
        [("# built", "model = model.parameters")],
        "builds",
        ": build returns method, not a torch.nn.Module: return the model",
    ),
    "gradients off": (
        [("# built", "torch.set_grad_enabled(False)")],
        "builds",
        f": build changes whether torch records gradients: {LEAVE}",
    ),
    "no parameters": (
        [("# built", "model = nn.Tanh()")],
        "builds",
        ": the module has no parameters: give it some",
    ),
    "a parameter in half": (
        [("# block", "self.out.half()")],
        "builds",
        ": its parameter blocks.0.out.weight is torch.float16: make it float32: the run's precision"
        " is set by its JSON",
    ),
    "a frozen parameter": (
        [("# model", "self.embed.weight.requires_grad = False")],
        "builds",
        ": its parameter embed.weight is not trained: make it a buffer, by"
        " register_buffer(…, persistent=False)",
    ),
    "a buffer that is kept": (
        [("# model", "self.register_buffer('mask', torch.ones(4, 4))")],
        "builds",
        ": its buffer mask would have to be kept with the weights, and checkpoints hold parameters"
        " alone: compute it in build, and register_buffer(…, persistent=False)",
    ),
    "a batch norm that keeps statistics": (
        [("# model", "self.batch_norm = nn.BatchNorm1d(16)")],
        "builds",
        ": its buffer batch_norm.running_mean would have to be kept with the weights, and"
        " checkpoints hold parameters alone: compute it in build, and"
        " register_buffer(…, persistent=False)",
    ),
    "a bias of the output layer": (
        [("shape.vocab_size, bias=False", "shape.vocab_size")],
        "builds",
        ": the output layer 'head' has a bias, which would not be used: leave it out, or leave"
        " `output_layer` out and return logits",
    ),
    "another vocabulary": (
        [("shape.vocab_size, bias=False", "100, bias=False")],
        "builds",
        ": the weight of the output layer 'head' has 100 rows, and the vocabulary 64 ids: let it"
        " have shape.vocab_size",
    ),
    "no such output layer": (
        [('output_layer = "head"', 'output_layer = "lm_head"')],
        "builds",
        ": `output_layer` is 'lm_head', which is no submodule: let `output_layer` be the name of"
        " the submodule that makes logits",
    ),
    "values of a seed of its own": (
        [("model = Model(shape, base)", "torch.manual_seed(7)\nmodel = Model(shape, base)")],
        "builds again",
        ": build gives the same first values whatever the run's seed is: take out what seeds random"
        " numbers in it",
    ),
    "other values each time": (
        [
            ("# top", "import time"),
            ("# model", "nn.init.constant_(self.norm.bias, time.time_ns() % 1000)"),
        ],
        "builds again",
        ": build gives norm.bias other first values the second time, though torch's seed is the"
        " same: draw them by torch, on the CPU, without a generator of its own",
    ),
    "another buffer each time": (
        [
            ("# top", "import time"),
            ("# built", "model.register_buffer('now', torch.tensor([time.time_ns()]), False)"),
        ],
        "builds again",
        ": its buffer now has other values at each build, so ranks and resumed runs would differ:"
        " let it depend on the shape and the options alone",
    ),
    # ---- forward
    "an error in forward": (
        [("# first", "tokens.no_such_thing()")],
        "outputs",
        ":{line}: forward fails (AttributeError: 'Tensor' object has no attribute 'no_such_thing')",
    ),
    "a loss": (
        [(LAST, "x = x.square().mean()")],
        "outputs",
        ": of tokens (1, 16) the module makes (), not hidden states (1, 16, 16): return hidden"
        " states, and name the output layer in `output_layer`",
    ),
    "a pair": (
        [(LAST, "x = x, None")],
        "outputs",
        ": of tokens (1, 16) the module makes tuple, not hidden states (1, 16, 16): return hidden"
        " states, and name the output layer in `output_layer`",
    ),
    "logits beside an output layer": (
        [(LAST, "x = self.head(x)")],
        "outputs",
        ": of tokens (1, 16) the module makes (1, 16, 64), not hidden states (1, 16, 16): return"
        " hidden states, and name the output layer in `output_layer`",
    ),
    "time before rows": (
        [(LAST, "x = x.transpose(0, 1)")],
        "outputs",
        ": of tokens (1, 16) the module makes (16, 1, 16), not hidden states (1, 16, 16): return"
        " hidden states, and name the output layer in `output_layer`",
    ),
    "one length only": (
        [(LAST, "x = x + torch.ones(16, 1)")],
        "outputs",
        ":{line}: forward fails (RuntimeError: The size of tensor a (8) must match"
        " the size of tensor b (16) at non-singleton dimension 1)",
    ),
    "a NaN": (
        [("# block", "nn.init.constant_(self.out.bias, float('nan'))")],
        "outputs",
        f": {IN_FORWARD} makes numbers that are not finite, with the first weights: look at its"
        " submodule 'blocks.0.out'",
    ),
    "a parameter made in forward": (
        [(LAST, "self.late = nn.Parameter(torch.ones(16))\nx = x * self.late")],
        "outputs",
        ": forward makes the parameter late, which no optimizer would know: make it in build",
    ),
    "prints in forward": (
        [(LAST, "print(x.shape)")],
        "outputs",
        f": {IN_FORWARD} prints 'torch.Size([1, 16, 16])': take that out: every rank would print"
        " it",
    ),
    "dropout": (
        [("# model", "self.drop = nn.Dropout(0.1)"), (LAST, "x = self.drop(x)")],
        "repeatable",
        ": it drops activations at random (drop): take dropout out: runs are exactly repeatable,"
        " and a corpus is read once",
    ),
    "dropout by a function": (
        [(LAST, "x = nn.functional.dropout(x, 0.1)")],
        "repeatable",
        f": {NO_DRAWS}",
    ),
    "noise": ([(LAST, "x = x + torch.randn_like(x)")], "repeatable", f": {NO_DRAWS}"),
    "a seed in forward": (
        [("# first", "torch.manual_seed(3)"), (LAST, "x = x + torch.randn_like(x[:1])")],
        "repeatable",
        f": {NO_DRAWS}",
    ),
    "state between calls": (
        [
            ("# model", "self.kept = 0.0"),
            (LAST, "x = x + self.kept\nself.kept = x.detach().mean()"),
        ],
        "repeatable",
        f": {KEEPS}",
    ),
    "state between calls in a list": (
        [("# top", "KEPT = []"), (LAST, "KEPT.append(1)\nx = x * len(KEPT)")],
        "repeatable",
        f": {KEEPS}",
    ),
    "a mask for both directions": (
        [("is_causal=True", "is_causal=False")],
        "causal",
        f": {FUTURE}",
    ),
    "both directions behind zeros": (
        [("is_causal=True", "is_causal=False"), ("# block", "nn.init.zeros_(self.out.weight)")],
        "causal",
        f": {FUTURE}",
    ),
    "both directions behind a gate that is shut": (
        [
            ("# model", "self.gate = nn.Parameter(torch.zeros(1))"),
            (LAST, "x = x + self.gate * x.mean(1, keepdim=True)"),
        ],
        "causal",
        f": {FUTURE}",
    ),
    "a mask that is one too wide": (
        [("is_causal=True", "attn_mask=torch.ones(t, t).tril(1).bool()")],
        "causal",
        f": {FUTURE}",
    ),
    "a shift": ([(LAST, "x = x + x.roll(-1, 1)")], "causal", f": {FUTURE}"),
    "a convolution with padding on both sides": (
        [
            ("# model", "self.conv = nn.Conv1d(16, 16, 3, padding=1)"),
            (LAST, "x = x + self.conv(x.transpose(1, 2)).transpose(1, 2)"),
        ],
        "causal",
        f": {FUTURE}",
    ),
    "a mean over time": ([(LAST, "x = x - x.mean(1, keepdim=True)")], "causal", f": {FUTURE}"),
    "both directions within chunks": (
        [
            ("# top", "from torch.nn.functional import avg_pool1d"),
            (
                LAST,
                "size = min(4, x.shape[1])\n"
                "means = avg_pool1d(x.transpose(1, 2), size, ceil_mode=True).transpose(1, 2)\n"
                "x = x + means.repeat_interleave(size, 1)[:, : x.shape[1]]",
            ),
        ],
        "causal",
        f": {FUTURE}",
    ),
    "a norm over rows and time": (
        [(LAST, "x = (x - x.mean((0, 1))) / (0.1 + x.square().mean((0, 1)).sqrt())")],
        "rows",
        f": {MIXED}",
    ),
    "one token of the next chunk": (
        [
            (
                LAST,
                "if x.shape[1] > 7:\n"
                "    x = torch.cat([x[:, :6], x[:, 6:8].sum(1, True), x[:, 7:]], 1)",
            )
        ],
        "causal",
        ": the model sees the future: with other tokens from position 7 on, its output at position"
        " 6 is another (in train mode)",
    ),
    "a look behind the tokens": (
        [
            (
                LAST,
                "whole = tokens._base if tokens._base is not None else tokens\n"
                "x = x + whole[:, -1:, None] / 64",
            )
        ],
        "rows",
        ": of tokens (1, 16) the module makes (3, 16, 16)",
    ),
    "a norm over rows": ([(LAST, "x = x - x.mean(0, keepdim=True)")], "rows", f": {MIXED}"),
    "rows shifted": ([(LAST, "x = x + x.roll(1, 0)")], "rows", f": {MIXED}"),
    "targets by another way": (
        [
            ("# top", "import sys"),
            (
                LAST,
                "frame = sys._getframe()\n"
                "while frame and 'targets' not in frame.f_locals:\n"
                "    frame = frame.f_back\n"
                "targets = frame.f_locals['targets'] if frame else None\n"
                "if torch.is_tensor(targets) and targets.shape == tokens.shape:\n"
                "    x = 30 * self.head.weight[targets]",
            ),
        ],
        "loss",
        "where targets are near",
    ),
    "large logits": (
        [("# built", "nn.init.normal_(model.head.weight, std=3.0)")],
        "loss",
        f"a uniform guess's 4.16, ln of the vocabulary's 64 ids: {TOO_LARGE}",
    ),
    "angles in bf16": (
        [
            (
                LAST,
                "at = torch.arange(900, 900 + x.shape[1], dtype=x.dtype)\n"
                "x = x * torch.cos(at[:, None])",
            )
        ],
        "bf16",
        "compute angles, norms and long sums in fp32 inside of forward",
    ),
    "fp32 in bf16": (
        [(LAST, "x = x.float()")],
        "bf16",
        ": in bf16 its outputs are torch.float32: return the dtype of the parameters;",
    ),
    # ---- gradients
    "an unused parameter": (
        [("# model", "self.spare = nn.Linear(3, 3)")],
        "gradients",
        f": no gradient comes to spare.weight, spare.bias: {NO_GRADIENT}",
    ),
    "a parameter times zero": (
        [
            ("# model", "self.spare = nn.Parameter(torch.ones(16))"),
            (LAST, "x = x + 0 * self.spare"),
        ],
        "gradients",
        f": no gradient comes to spare: {NO_GRADIENT}",
    ),
    "an unknown name without gradient": (
        [("# model", "self.without_gradient = ('spare',)")],
        "gradients",
        ": `without_gradient` names spare, which is no parameter: give names as named_parameters()"
        " has them",
    ),
    "a wrong gradient": (
        [
            (
                "# top",
                "class Half(torch.autograd.Function):\n"
                "    @staticmethod\n"
                "    def forward(context, x):\n"
                "        return x * 1\n\n"
                "    @staticmethod\n"
                "    def backward(context, gradient):\n"
                "        return gradient / 2",
            ),
            ("self.norm(x)).view", "Half.apply(self.norm(x))).view"),
        ],
        "derivative",
        "is not the derivative of the loss",
    ),
    "a detached branch": (
        [("return x + self.out(y)", "return x + self.out(y) + x.detach() * 0.5")],
        "derivative",
        "straight-through estimator, give --own_gradient",
    ),
}
