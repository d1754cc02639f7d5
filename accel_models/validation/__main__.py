"""`python -m accel_models.validation [TARGET ...]`: recompute and store every target's error."""

from __future__ import annotations

import sys

from accel_models.registry import targets
from accel_models.validation.compare import compare, compare_as_shipped, store, summary


def main(names: list[str]) -> None:
    """Print each row with its prediction, then the summary; store all when no target was named."""
    results = {}
    for name in names or targets():
        comparisons = compare(name)
        for item in comparisons:
            row = item.row
            print(f"{row.id:60} {row.value:14.3f} {item.predicted:14.3f} {row.unit:6} {item.error:+8.1%}")
        if bar := summary(comparisons):
            results[name] = bar
        print(f"{name}: {bar or 'no published rows'}")
        if plain := summary(compare_as_shipped(name)):
            print(f"{name}, layers by themselves priced as if inside a network: {plain}")
    if not names:
        store(results)


if __name__ == "__main__":
    main(sys.argv[1:])
