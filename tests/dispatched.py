"""Which of torch's operations a block of code runs, forward or backward: on a GPU each but a view is a launch or more."""

from collections import Counter

from torch.utils._python_dispatch import TorchDispatchMode


class Dispatched(TorchDispatchMode):
    """`with Dispatched() as ran: …` leaves in ran.names a Counter of the operations' names, such as "mm" and "add_"."""

    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names[function._schema.name.split("::")[1]] += 1
        return function(*args, **(kwargs or {}))
