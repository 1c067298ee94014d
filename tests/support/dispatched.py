"""Which of torch's operations a block of code runs, forward or backward: on a GPU each but a view
is a launch or more."""

from collections import Counter

from gpt.kernels.compiler import DispatchMode

# Operations that only look at a tensor in another way, or make one without writing to it.
WITHOUT_KERNEL = frozenset(
    "_local_scalar_dense _record_function_enter_new _record_function_exit _reshape_alias"
    " _unsafe_view alias as_strided detach empty empty_like empty_strided expand is_pinned"
    " is_same_size lift_fresh narrow new_empty new_empty_strided permute promote_types resize_"
    " select set_ slice split split_with_sizes squeeze t transpose unbind unsqueeze view".split()
)


class Dispatched(DispatchMode):
    """`with Dispatched() as ran: …` leaves in ran.names a Counter of the operations' names, such as
    "mm" and "add_"."""

    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names[function._schema.name.split("::")[1]] += 1
        return function(*args, **(kwargs or {}))


class Launches(Dispatched):
    """Counts what a GPU would be given to do: a list of tensors in one operation counts once,
    though it may take a GPU a few kernels."""

    @property
    def total(self) -> int:
        return sum(times for name, times in self.names.items() if name not in WITHOUT_KERNEL)
