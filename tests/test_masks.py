"""Masks against dense matrices and against each rule as a sentence about one pair of tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask

from kaleido_jax import masks
from kaleido_jax.layout import Segment, TokenLayout
from kaleido_jax.masks import EMPTY, FULL, PARTIAL, TokenMask, block_summary, visibility
from kaleido_jax.names import lookup

QUERIES, KEYS = 7, 5


def numbers(seed, *, width, batch=None, queries=QUERIES, keys=KEYS, samples=None):
    """A random mask; with samples, about a quarter of its tokens are padding."""
    rng = np.random.default_rng(seed)
    shape = lambda n: (n,) if batch is None else (batch, n)
    bits = lambda n: rng.integers(0, 2**width, size=shape(n), dtype=np.uint32)
    sample = lambda n: rng.integers(-1, 3, size=shape(n), dtype=np.int32)
    q_sample, k_sample = (sample(queries), sample(keys)) if samples else (None, None)
    # Few bits set, or nearly everything would be visible.
    reads, groups = bits(queries) & bits(queries), bits(keys) & bits(keys)
    return TokenMask(reads, groups, q_sample=q_sample, k_sample=k_sample, width=width)


def dense(mask):
    """The definition, pair by pair, in Python integers."""
    batch, queries, keys = mask.shape
    full = lambda x, n: np.broadcast_to(np.asarray(x), (batch, n)).tolist()
    reads, groups = full(mask.reads, queries), full(mask.groups, keys)
    q_sample = full(0 if mask.q_sample is None else mask.q_sample, queries)
    k_sample = full(0 if mask.k_sample is None else mask.k_sample, keys)
    visible = lambda b, q, k: q_sample[b][q] == k_sample[b][k] >= 0 and reads[b][q] & groups[b][k] != 0
    return np.array([[[visible(b, q, k) for k in range(keys)] for q in range(queries)] for b in range(batch)])


seeds = st.integers(0, 2**31 - 1)
# The two ways to give a mask: for the whole batch at once, or sample by sample.
batches = st.sampled_from([None, 2])


@settings(deadline=None, max_examples=30)
@given(seed=seeds, batch=batches, samples=st.booleans())
def test_dense_is_the_definition(seed, batch, samples):
    mask = numbers(seed, width=3, batch=batch, samples=samples)
    np.testing.assert_array_equal(mask.dense(), dense(mask))


@settings(deadline=None, max_examples=40)
@given(seed=seeds, widths=st.tuples(st.integers(1, 5), st.integers(1, 5)), first=batches, second=batches)
def test_and_or_are_those_of_the_dense_masks(seed, widths, first, second):
    a, b = numbers(seed, width=widths[0], batch=first), numbers(seed + 1, width=widths[1], batch=second)
    both, either = a & b, a | b
    assert (both.width, either.width) == (widths[0] * widths[1], sum(widths))
    np.testing.assert_array_equal(dense(both), dense(a) & dense(b))
    np.testing.assert_array_equal(dense(either), dense(a) | dense(b))


@settings(deadline=None, max_examples=25)
@given(seed=seeds, first=batches, second=batches)
def test_and_joins_samples(seed, first, second):
    a, b = numbers(seed, width=2, batch=first, samples=True), numbers(seed + 1, width=2, batch=second, samples=True)
    plain = numbers(seed + 2, width=2)
    np.testing.assert_array_equal(dense(a & b), dense(a) & dense(b))
    np.testing.assert_array_equal(dense(a & plain), dense(a) & dense(plain))
    np.testing.assert_array_equal(dense(plain & a), dense(a) & dense(plain))


@settings(deadline=None, max_examples=20)
@given(seed=seeds)
def test_or_within_the_same_samples(seed):
    a = numbers(seed, width=2, samples=True)
    other = numbers(seed + 1, width=3)
    b = TokenMask(other.reads, other.groups, q_sample=a.q_sample.copy(), k_sample=a.k_sample.copy(), width=3)
    np.testing.assert_array_equal(dense(a | b), dense(a) | dense(b))
    with pytest.raises(ValueError, match="must have the same q_sample and k_sample"):
        a | other


def test_algebra_while_tracing():
    a, b = numbers(0, width=3, batch=2, samples=True), numbers(1, width=4, batch=2, samples=True)
    both = jax.jit(lambda a, b: (a & b).dense())(a, b)
    np.testing.assert_array_equal(both, dense(a) & dense(b))
    same = jax.jit(lambda a: (a | a).dense())(a)
    np.testing.assert_array_equal(same, dense(a))
    with pytest.raises(ValueError, match="the same q_sample"):
        jax.eval_shape(lambda a, b: a | b, a, b)


def test_more_than_32_bits_is_an_error_when_tracing():
    a, b = numbers(0, width=6), numbers(1, width=6)
    with pytest.raises(ValueError, match=r"at most 32 bits; widths 6 and 6 joined by & multiply to 36"):
        jax.eval_shape(lambda a, b: a & b, a, b)
    full = TokenMask(a.reads, a.groups)
    with pytest.raises(ValueError, match=r"widths 32 and 6 joined by \| add up to 38. State the bits really in use"):
        jax.eval_shape(lambda a, b: a | b, full, b)


def test_all_32_bits_can_be_used():
    reads = np.array([1 << 31, 1, 0xFFFFFFFF, 0], np.uint32)
    mask = TokenMask(reads, reads)
    expected = [[True, False, True, False], [False, True, True, False], [True, True, True, False], [False] * 4]
    assert np.asarray(mask.dense())[0].tolist() == expected
    halves = numbers(3, width=16) | numbers(4, width=16)
    np.testing.assert_array_equal(dense(halves), dense(numbers(3, width=16)) | dense(numbers(4, width=16)))


def test_a_mask_is_a_pytree_with_a_static_width():
    mask = numbers(0, width=3, batch=2, samples=True)
    leaves, structure = jax.tree.flatten(mask)
    assert len(leaves) == 4 and jax.tree.unflatten(structure, leaves).width == 3
    assert jax.tree.structure(numbers(0, width=4, batch=2, samples=True)) != structure
    assert jax.tree.map(lambda x: x.shape, mask).reads == (2, QUERIES)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(mask)]
    assert paths == [".reads", ".groups", ".q_sample", ".k_sample"]
    one_by_one = jax.vmap(lambda m: m.dense()[0])(jax.tree.map(jnp.asarray, mask))
    np.testing.assert_array_equal(one_by_one, dense(mask))


def test_take_chooses_tokens():
    mask = numbers(5, width=3, batch=2, samples=True)
    part = mask.take(queries=slice(2, 6), keys=np.array([0, 3]))
    np.testing.assert_array_equal(dense(part), dense(mask)[:, 2:6][:, :, [0, 3]])


U, I = np.uint32, np.int32


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"reads": np.zeros(3, I)}, "TokenMask.reads has dtype int32; it must be uint32"),
        ({"groups": np.zeros((1, 2, 3), U)}, r"TokenMask.groups has shape \(1, 2, 3\); it must be \[keys\] or"),
        ({"q_sample": np.zeros(4, I)}, "TokenMask.k_sample is missing"),
        ({"q_sample": np.zeros(4, np.int64), "k_sample": np.zeros(5, I)}, "TokenMask.q_sample has dtype int64"),
        ({"q_sample": np.zeros(3, I), "k_sample": np.zeros(5, I)}, r"q_sample has shape \(3,\); reads has 4 tokens"),
        ({"reads": np.zeros((2, 4), U), "groups": np.zeros((3, 5), U)}, r"batch sizes \[2, 3\]"),
        ({"width": 0}, "TokenMask.width is 0; it must be between 1 and 32"),
        ({"width": 33}, "TokenMask.width is 33"),
        ({"reads": np.full(4, 8, U), "width": 3}, "TokenMask.reads has a bit set at or above width=3"),
    ],
)
def test_a_wrong_mask_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        TokenMask(**{"reads": np.zeros(4, U), "groups": np.zeros(5, U)} | arguments)


def test_masks_over_other_tokens_do_not_join():
    with pytest.raises(ValueError, match=r"equal queries and keys; got \(7, 5\) and \(6, 5\)"):
        numbers(0, width=1) & numbers(0, width=1, queries=6)


# Blocks.


def blocks_of(matrix, block_q, block_k):
    """EMPTY, PARTIAL or FULL of each block of a matrix, by looking at all of it."""
    rows = range(0, matrix.shape[1], block_q)
    columns = range(0, matrix.shape[2], block_k)
    state = lambda part: FULL if part.all() else PARTIAL if part.any() else EMPTY
    return np.array([[[state(m[i : i + block_q, j : j + block_k]) for j in columns] for i in rows] for m in matrix])


@settings(deadline=None, max_examples=30)
@given(seed=seeds, batch=batches, samples=st.booleans(), width=st.integers(1, 2))
def test_block_summary_proves_what_it_says(seed, batch, samples, width):
    mask = numbers(seed, width=width, batch=batch, queries=11, keys=8, samples=samples)
    got, truth = np.asarray(block_summary(mask, 4, 3)), blocks_of(dense(mask), 4, 3)
    assert (truth[got == EMPTY] == EMPTY).all() and (truth[got == FULL] == FULL).all()
    if not samples:
        np.testing.assert_array_equal(got == EMPTY, truth == EMPTY)
        if width == 1:
            np.testing.assert_array_equal(got, truth)


def test_block_summary_is_exact_for_samples_packed_in_order():
    sample = np.array([0] * 5 + [1] * 8 + [2] * 3 + [-1] * 4, I)
    mask = TokenMask(np.ones(20, U), np.ones(20, U), q_sample=sample, k_sample=sample, width=1)
    np.testing.assert_array_equal(block_summary(mask, 4, 4), blocks_of(dense(mask), 4, 4))


def test_block_summary_is_that_of_flex_attention():
    """torch's block mask finds the same blocks (it looks at every pair)."""
    layout = TokenLayout((*[Segment(kind="reference", grid=(1, 4, 8))] * 2, Segment(kind="video", grid=(3, 4, 8))))
    mask = visibility(layout, masks.unidirectional, masks.separate_references)
    matrix = np.asarray(mask.dense())[0].copy()
    import torch

    seen = torch.from_numpy(matrix)
    n = layout.tokens()
    peer = create_block_mask(lambda b, h, q, k: seen[q, k], None, None, n, n, device="cpu", BLOCK_SIZE=16)
    got = np.asarray(block_summary(mask, 16, 16))[0]
    assert peer.kv_num_blocks[0, 0].tolist() == (got == PARTIAL).sum(1).tolist()
    assert peer.full_kv_num_blocks[0, 0].tolist() == (got == FULL).sum(1).tolist()


# Rules, each as one sentence about a query's and a key's segment.

LAYOUT = TokenLayout(
    (
        Segment(kind="text", grid=(3, 1, 1)),
        Segment(kind="reference", grid=(1, 1, 2), subject=0),
        Segment(kind="reference", grid=(2, 1, 2), subject=0, picture=1),
        Segment(kind="reference", grid=(1, 1, 2), subject=1),
        Segment(kind="dummy", grid=(1, 1, 1)),
        Segment(kind="video", grid=(2, 1, 2), shot=1),
        Segment(kind="text", grid=(2, 1, 1), shot=2),
        Segment(kind="video", grid=(1, 1, 3), shot=2),
    )
)
SENTENCES = {
    "bidirectional": lambda q, k: True,
    "unidirectional": lambda q, k: q.kind in ("video", "dummy") or k.kind not in ("video", "dummy"),
    "separate-references": lambda q, k: q is k or not q.kind == k.kind == "reference",
    "separate-subjects": lambda q, k: not q.kind == k.kind == "reference" or q.subject == k.subject,
    "shot-causal": lambda q, k: k.shot <= q.shot,
    "own-shot": lambda q, k: k.shot == q.shot,
    "emphasis": lambda q, k: q.kind == "video" and k.kind == "reference",
}


def by_sentence(layout, sentence):
    ids = layout.segment_ids()
    pairs = np.array([[sentence(q, k) for k in layout.segments] for q in layout.segments])
    return pairs[ids][:, ids]


def test_every_rule_is_tested():
    assert set(SENTENCES) == set(masks.RULES)


@pytest.mark.parametrize("name", SENTENCES)
def test_rule(name):
    mask = visibility(LAYOUT, lookup(masks.RULES, name, "visibility rule"), queries=None, keys=None)
    np.testing.assert_array_equal(np.asarray(mask.dense())[0], by_sentence(LAYOUT, SENTENCES[name]))
    visual, words = LAYOUT.token_indices("visual"), LAYOUT.token_indices("text")
    cross = visibility(LAYOUT, masks.RULES[name], queries="visual", keys="text")
    expected = by_sentence(LAYOUT, SENTENCES[name])[visual][:, words]
    np.testing.assert_array_equal(np.asarray(cross.dense())[0], expected)


def test_references_alone_read_nothing_but_themselves():
    mask = visibility(LAYOUT, masks.unidirectional, masks.separate_references)
    assert mask.width == 2 * 4
    both = lambda q, k: SENTENCES["unidirectional"](q, k) and SENTENCES["separate-references"](q, k)
    visual = LAYOUT.token_indices("visual")
    np.testing.assert_array_equal(np.asarray(mask.dense())[0], by_sentence(LAYOUT, both)[visual][:, visual])


def test_who_reads_the_text():
    mask = visibility(LAYOUT, masks.readers("video"), queries="visual", keys="text")
    rows = np.asarray(mask.dense())[0].all(1)
    visual = LAYOUT.token_indices("visual")
    kinds = [LAYOUT.segments[i].kind for i in LAYOUT.segment_ids()[visual]]
    assert rows.tolist() == [kind == "video" for kind in kinds]


def test_nothing_to_hide_is_no_mask():
    assert visibility(LAYOUT) is None
    assert visibility(LAYOUT, contents=LAYOUT.contents()) is not None  # so that data never changes the program


def test_an_unknown_rule_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'shot-causal'"):
        lookup(masks.RULES, "shot_casual", "visibility rule")


def test_rules_that_need_too_many_bits():
    many = TokenLayout(tuple(Segment(kind="reference", grid=(1, 1, 1)) for _ in range(32)))
    with pytest.raises(ValueError, match="separate_references needs 33 bits for the references"):
        masks.separate_references(many)
    with pytest.raises(ValueError, match="separate_subjects needs 33 bits for the subjects"):
        masks.separate_subjects(many)
    shots = TokenLayout(tuple(Segment(kind="video", grid=(1, 1, 1), shot=shot) for shot in range(33)))
    with pytest.raises(ValueError, match="shot_causal needs 33 bits for the shots"):
        masks.shot_causal(shots)
    at_most = TokenLayout(shots.segments[1:])  # 32 shots, the first of them not numbered 0
    assert np.asarray(masks.shot_causal(at_most).dense())[0].tolist() == np.tri(32, dtype=bool).tolist()


@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_padding_and_packing(data):
    """Tokens see each other iff both are present and of one sample."""
    count = len(LAYOUT.segments)
    lengths = np.array([[data.draw(st.integers(0, s.tokens)) for s in LAYOUT.segments] for _ in range(2)])
    samples = np.array([[data.draw(st.integers(0, 2)) for _ in range(count)] for _ in range(2)])
    mask = visibility(LAYOUT, contents=LAYOUT.contents(lengths=lengths, samples=samples), queries=None, keys=None)
    for b, matrix in enumerate(np.asarray(mask.dense())):
        tokens = [
            (int(samples[b, i]), t < lengths[b, i]) for i, s in enumerate(LAYOUT.segments) for t in range(s.tokens)
        ]
        expected = [[here and there and a == z for z, there in tokens] for a, here in tokens]
        np.testing.assert_array_equal(matrix, expected)


@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_subjects_are_data(data):
    subjects = np.array([[data.draw(st.integers(0, 2)) for _ in LAYOUT.segments] for _ in range(2)])
    contents = LAYOUT.contents(subjects=subjects)
    mask = masks.separate_subjects(LAYOUT, contents)
    traced = jax.jit(masks.separate_subjects, static_argnums=0)(LAYOUT, contents)
    np.testing.assert_array_equal(traced.dense(), mask.dense())
    ids = LAYOUT.segment_ids()
    reference = np.array([s.kind == "reference" for s in LAYOUT.segments])[ids]
    for row, matrix in zip(subjects[:, ids], np.asarray(mask.dense())):
        strangers = reference[:, None] & reference[None] & (row[:, None] != row[None])
        np.testing.assert_array_equal(matrix, ~strangers)


def test_a_subject_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"each must be between 0 and 2 in this layout"):
        masks.separate_subjects(LAYOUT, LAYOUT.contents(subjects=np.full((1, 8), 3)))


def test_other_contents_need_no_new_program():
    calls = []

    @jax.jit
    def see(contents):
        calls.append(None)
        rules = masks.unidirectional, masks.separate_subjects
        return visibility(LAYOUT, *rules, contents=contents).dense()

    for lengths in ([3, 2, 4, 2, 1, 4, 2, 3], [1, 2, 0, 0, 1, 2, 0, 3]):
        for subjects in ([0, 0, 0, 1, 0, 0, 0, 0], [0, 0, 1, 2, 0, 0, 0, 0]):
            contents = LAYOUT.contents(lengths=np.array([lengths]), subjects=np.array([subjects]))
            expected = visibility(LAYOUT, masks.unidirectional, masks.separate_subjects, contents=contents).dense()
            np.testing.assert_array_equal(see(contents), expected)
    assert len(calls) == 1


@settings(deadline=None, max_examples=15)
@given(seed=seeds, batch=batches)
def test_foreground_reads_foreground(seed, batch):
    """CharaConsist: a frame sees itself and, of the shared tokens, those of the same side; texts see none."""
    layout = TokenLayout(
        (
            Segment(kind="text", grid=(2, 1, 1)),
            Segment(kind="video", grid=(1, 2, 3)),
            Segment(kind="reference", grid=(1, 2, 3)),
        )
    )
    rng = np.random.default_rng(seed)
    shape = (14,) if batch is None else (batch, 14)
    foreground, shared = rng.random(shape) < 0.5, rng.random(shape) < 0.7
    mask = masks.foreground_background(layout, jnp.asarray(foreground), jnp.asarray(shared)).take(queries=slice(0, 8))
    for matrix, front, offered in zip(np.asarray(mask.dense()), foreground.reshape(-1, 14), shared.reshape(-1, 14)):
        assert matrix[:, :8].all() and not matrix[:2, 8:].any()
        np.testing.assert_array_equal(matrix[2:, 8:], (front[2:8, None] == front[None, 8:]) & offered[None, 8:])
    everything = masks.foreground_background(layout, jnp.asarray(foreground))
    np.testing.assert_array_equal(
        np.asarray(everything.dense())[:, 2:8, 8:],
        foreground.reshape(-1, 14)[:, 2:8, None] == foreground.reshape(-1, 14)[:, None, 8:],
    )
