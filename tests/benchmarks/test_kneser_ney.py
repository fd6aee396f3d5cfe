"""The demo's judge gives the probabilities that Kneser-Ney's formulas give by hand, and always a distribution."""

import numpy as np
import pytest

from polyserve_benchmarks.demo_train.kneser_ney import KneserNey


def test_a_bigram_model_is_what_it_is_by_hand():
    # Tokens 0 1 2 of a vocabulary of 4; bigrams 01 01 02 10 12 20 and first tokens 0, 0. Too few counts to estimate
    # discounts from, so that D1 = 0.5, D2 = 1, D3+ = 1.5.
    model = KneserNey([np.array([0, 1, 0, 1, 2]), np.array([0, 2, 0])], vocab_size=4, order=2)
    # Unigrams by what stands before them: 0 after 1, 2 and twice first: 4; 1 after 0: 1; 2 after 0, 1: 2; 7 in all.
    took = (1.5 + 0.5 + 1.0) / 7
    unigram = [(4 - 1.5) / 7 + took / 4, (1 - 0.5) / 7 + took / 4, (2 - 1.0) / 7 + took / 4, took / 4]
    # After 0: 1 twice, 2 once. After 1: 0, 2 once each. After 2: 0 once. After 3: nothing was seen.
    after_0 = (1.0 + 0.5) / 3
    expected = [
        (2 - 1.0) / 3 + after_0 * unigram[1],  # 0 1
        (1 - 0.5) / 2 + 0.5 * unigram[2],  # 1 2
        0.5 * unigram[1],  # 2 1
        0.5 * unigram[3],  # 1 3
        unigram[0],  # 3 0
    ]
    assert model.probabilities(np.array([0, 1, 2, 1, 3, 0])) == pytest.approx(expected)


def test_discounts_are_estimated_from_counts_of_counts():
    # One context, 0, whose followers have counts 1, 1, 1, 2, 2, 3, 4: n1 3, n2 2, n3 1, n4 1.
    counts = {1: 1, 2: 1, 3: 1, 4: 2, 5: 2, 6: 3, 7: 4}
    documents = [np.array([0, token]) for token, count in counts.items() for _ in range(count)]
    model = KneserNey(documents, vocab_size=8, order=2)
    y = 3 / (3 + 2 * 2)
    d1, d2, d3 = 1 - 2 * y * 2 / 3, 2 - 3 * y * 1 / 2, 3 - 4 * y * 1 / 1
    gamma = (3 * d1 + 2 * d2 + 2 * d3) / 14
    ratios = model.probabilities(np.array([0, 7])) - model.probabilities(np.array([0, 6]))
    # followers 6 and 7 have one left neighbour each, so that their unigrams are the same
    assert ratios == pytest.approx([(4 - d3 - (3 - d3)) / 14])
    one, two = (model.probabilities(np.array([0, token]))[0] for token in (1, 4))
    assert two - one == pytest.approx((2 - d2 - (1 - d1)) / 14)
    assert 0 < gamma < 1


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_of_all_tokens_sum_to_one_after_seen_and_unseen_contexts(order):
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 12, size=length) ** 2 // 12 for length in (1, 2, 7, 40, 300)]
    model = KneserNey(documents, vocab_size=12, order=order)
    for context in ([], [3], [11, 11], [0, 1, 0, 2], [5, 0, 0, 0, 11, 4]):
        total = sum(model.probabilities(np.array([0, *context, token]))[-1] for token in range(12))
        assert total == pytest.approx(1)


def test_n_grams_do_not_cross_documents():
    apart = KneserNey([np.array([0, 1]), np.array([2, 3])], vocab_size=5, order=2)
    together = KneserNey([np.array([0, 1, 2, 3])], vocab_size=5, order=2)
    seen = [model.probabilities(np.array([1, 2]))[0] for model in (apart, together)]
    assert seen[0] < seen[1]
