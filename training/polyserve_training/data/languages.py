"""How much of each language: shares of a mixture from how much text there is.

smoothed   p ~ q ** alpha, q a language's part of all text: 1 keeps the proportions, 0 makes all languages equal
           XLM-R, https://arxiv.org/abs/1911.02116, section 3.1 (alpha 0.3)
unimax     as equal as can be without reading any language more often than max_epochs: the smallest ones are filled to
           their caps, the others divide what is left evenly     https://arxiv.org/abs/2304.09151, algorithm 1
"""

from collections.abc import Mapping


def smoothed(sizes: Mapping[str, int], *, alpha: float) -> dict[str, float]:
    """The share of each language, which sum to 1.  sizes: of its text, more than 0, in any unit."""
    total = sum(sizes.values())
    weights = {language: (size / total) ** alpha for language, size in sizes.items()}
    return _normalised(weights)


def unimax(sizes: Mapping[str, int], *, budget: float, max_epochs: float) -> dict[str, float]:
    """The share of each language, which sum to 1.  budget: how much will be read, in the unit of sizes."""
    taken: dict[str, float] = {}
    left = budget
    for number, (language, size) in enumerate(sorted(sizes.items(), key=lambda item: (item[1], item[0]))):
        taken[language] = min(left / (len(sizes) - number), size * max_epochs)
        left -= taken[language]
    return _normalised({language: taken[language] for language in sizes})


def _normalised(weights: Mapping[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    return {language: weight / total for language, weight in weights.items()}
