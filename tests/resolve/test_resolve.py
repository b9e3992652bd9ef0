"""Requirements to exact versions, of packages and of the stacks that require them."""

from __future__ import annotations

from tests.resolve.shelf import Row, ask, lock, refs, shelf


def test_the_members_of_a_stack_are_chosen_with_it() -> None:
    registry = shelf(
        {
            "acme/clinic": [Row(version="1.0.0", requires=("acme/medical<2", "acme/spanish"))],
            "acme/medical": ["1.0.0", "1.5.0", "2.0.0"],
            "acme/spanish": ["1.0.0"],
        }
    )
    found = ask(registry, "acme/clinic")
    assert refs(found) == ["acme/clinic@1.0.0", "acme/medical@1.5.0", "acme/spanish@1.0.0"]
    medical = found.choice("acme/medical")
    assert medical is not None
    assert medical.required_by == ("acme/clinic",)
    assert registry.asked == {
        "list acme/clinic": 1,
        "list acme/medical": 1,
        "list acme/spanish": 1,
        "describe acme/clinic@1.0.0": 1,
        "describe acme/medical@1.5.0": 1,
        "describe acme/spanish@1.0.0": 1,
    }
    registry.asked.clear()
    again = ask(registry, "acme/clinic", locked=lock(found))
    assert refs(again) == refs(found)
    assert not registry.asked


def test_a_conflict_between_stacks_is_solved_by_a_lower_version() -> None:
    registry = shelf(
        {
            "acme/one": [Row(version="1.0.0", requires=("acme/b",)), Row(version="2.0.0", requires=("acme/b>=2",))],
            "acme/two": [Row(version="1.0.0", requires=("acme/b<2",))],
            "acme/b": ["1.0.0", "2.0.0"],
        }
    )
    assert refs(ask(registry, "acme/one", "acme/two")) == ["acme/b@1.0.0", "acme/one@1.0.0", "acme/two@1.0.0"]
