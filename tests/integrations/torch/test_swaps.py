"""Changes of what is merged into layers are counted from one look to the next."""

from __future__ import annotations

from torch import nn

from weightguard_integrations.torch.swaps import Swaps


class Adapted(nn.Module):
    """A layer that adapters can be merged into, as PEFT's say it."""

    def __init__(self) -> None:
        super().__init__()
        self.merged_adapters: list[str] = []


def test_each_look_counts_what_changed_since_the_last() -> None:
    one, other, swaps = Adapted(), Adapted(), Swaps()
    swaps.take([one, other, nn.Linear(2, 2)])
    swaps.look()
    assert (swaps.told(one), swaps.told(other)) == ((), ())
    one.merged_adapters.append("style")
    assert swaps.told(one) == ("style",)
    swaps.look()
    swaps.look()
    assert swaps.told(one) == ("style", "change 1")
    one.merged_adapters.clear()
    swaps.look()
    assert (swaps.told(one), swaps.told(other)) == (("change 2",), ())


def test_layers_are_counted_on_when_they_are_taken_again_and_forgotten_when_gone() -> None:
    one, other, swaps = Adapted(), Adapted(), Swaps()
    swaps.take([one, other])
    for layer in (one, other):
        layer.merged_adapters.append("style")
    swaps.take([one])
    assert swaps.told(one) == ("style", "change 1")
    assert swaps.told(other) == ("style",)


def test_modules_without_adapters_have_nothing_merged() -> None:
    linear, swaps = nn.Linear(2, 2), Swaps()
    swaps.take([linear])
    swaps.look()
    assert swaps.told(linear) == ()
