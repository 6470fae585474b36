"""AMT (arXiv:2304.09790), the small network: the frame in the middle of two frames.

Flows from the middle to both frames are guessed at 1/16 of the frame and made finer level by level. At each level both
frames' features are warped by them, and they are corrected by what the correlation of all pairs of places, at 1/8,
holds where they point to. The last level has several pairs of flows, each with a mask and a residue; the frame is the
mean of what they give and a correction.

A flow is (x, y) in pixels of its own level. What the paper leaves to its code is as in the network that VBench runs.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from kaleido_jax.models.amt.config import AMTConfig
from kaleido_jax.models.faces.modeling import PReLU
from kaleido_jax.models.vision import resampling

MIDDLE = 0.5  # of the way from the first frame to the second
# A layer may change every size but the batch: what comes out has names of its own.
Input = Float[Array, "b h w c"]
Output = Float[Array, "b y x o"]
Flow = Float[Array, "b h w 2"]


class Convolution(nnx.Module):
    """A convolution that keeps height and width before its stride: `kernel` [size, size, in, out], `bias` [out]."""

    def __init__(self, n_in: int, n_out: int, size: int, rngs: nnx.Rngs, *, stride: int = 1):
        initial = nnx.initializers.lecun_normal(in_axis=(0, 1, 2))
        self.kernel = nnx.Param(initial(rngs.params(), (size, size, n_in, n_out), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((n_out,), jnp.float32))
        self.stride = stride

    def __call__(self, x: Input) -> Output:
        edge = self.kernel.shape[0] // 2
        return _convolve(x, self.kernel[...], self.stride, edge) + self.bias[...][None, None, None]


class Doubling(nnx.Module):
    """A transposed convolution of stride 2: `kernel` [4, 4, in, out], laid around each sample, `bias` [out]."""

    def __init__(self, n_in: int, n_out: int, rngs: nnx.Rngs):
        initial = nnx.initializers.lecun_normal(in_axis=(0, 1, 2))
        self.kernel = nnx.Param(initial(rngs.params(), (4, 4, n_in, n_out), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((n_out,), jnp.float32))

    def __call__(self, x: Input) -> Output:
        # What a sample gives its surroundings is what they take from it with the kernel turned round.
        return _convolve(x, self.kernel[...][::-1, ::-1], 1, 2, spread=2) + self.bias[...][None, None, None]


def _convolve(x: Input, kernel: Float[Array, "k k c o"], stride: int, edge: int, spread: int = 1) -> Output:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), ((edge, edge), (edge, edge)), lhs_dilation=(spread, spread),
        dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=jax.lax.Precision.HIGHEST,
    )  # fmt: skip


class Activated(nnx.Module):
    """A convolution of 3 x 3 and PReLU."""

    def __init__(self, n_in: int, n_out: int, rngs: nnx.Rngs, *, stride: int = 1):
        self.conv = Convolution(n_in, n_out, 3, rngs, stride=stride)
        self.act = PReLU(n_out)

    def __call__(self, x: Input) -> Output:
        return self.act(self.conv(x))


class Bottleneck(nnx.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions, normalised over each picture, added to what came in."""

    def __init__(self, n_in: int, n_out: int, stride: int, rngs: nnx.Rngs):
        self.conv1 = Convolution(n_in, n_out // 4, 1, rngs)
        self.conv2 = Convolution(n_out // 4, n_out // 4, 3, rngs, stride=stride)
        self.conv3 = Convolution(n_out // 4, n_out, 1, rngs)
        self.shortcut = None if stride == 1 else Convolution(n_in, n_out, 1, rngs, stride=stride)

    def __call__(self, x: Input) -> Output:
        y = x
        for conv in (self.conv1, self.conv2, self.conv3):
            y = jax.nn.relu(_normalised(conv(y)))
        return jax.nn.relu(y + (x if self.shortcut is None else _normalised(self.shortcut(x))))


def _normalised(x: Input) -> Input:
    x = x - x.mean((1, 2), keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean((1, 2), keepdims=True) + 1e-5)


class Matching(nnx.Module):
    """Pictures to the features that are correlated, at 1/8."""

    def __init__(self, config: AMTConfig, rngs: nnx.Rngs):
        first = config.matching[0]
        self.conv_in = Convolution(3, first, 7, rngs, stride=2)
        blocks, n_in = [], first
        for stage, n_out in enumerate(config.matching):
            blocks += [Bottleneck(n_in, n_out, 2 if stage else 1, rngs), Bottleneck(n_out, n_out, 1, rngs)]
            n_in = n_out
        self.blocks = nnx.List(blocks)
        self.conv_out = Convolution(n_in, config.matched, 1, rngs)

    def __call__(self, x: Input) -> Output:
        x = jax.nn.relu(_normalised(self.conv_in(x)))
        for block in self.blocks:
            x = block(x)
        return self.conv_out(x)


class SideBlock(nnx.Module):
    """A residual block of convolutions, of which every second one sees and changes the last `side` channels alone."""

    def __init__(self, channels: int, side: int, rngs: nnx.Rngs):
        self.convs = nnx.List(Activated(n, n, rngs) for n in (channels, side, channels, side))
        self.conv_out = Convolution(channels, channels, 3, rngs)
        self.act = PReLU(channels)
        self.side = side

    def __call__(self, x: Input) -> Input:
        y = x
        for whole, part in ((self.convs[0], self.convs[1]), (self.convs[2], self.convs[3])):
            y = whole(y)
            y = jnp.concatenate([y[..., : -self.side], part(y[..., -self.side :])], axis=-1)
        return self.act(x + self.conv_out(y))


class Decoder(nnx.Module):
    """Features of a level to those of the level that is twice as large."""

    def __init__(self, n_in: int, channels: int, n_out: int, side: int, rngs: nnx.Rngs):
        self.first = Activated(n_in, channels, rngs)
        self.block = SideBlock(channels, side, rngs)
        self.up = Doubling(channels, n_out, rngs)

    def __call__(self, *parts: Float[Array, "b h w _"]) -> Output:
        return self.up(self.block(self.first(jnp.concatenate(parts, axis=-1))))


class Chain(nnx.Module):
    """Two convolutions of 3 x 3 with a leaky ReLU between them."""

    def __init__(self, n_in: int, hidden: int, n_out: int, rngs: nnx.Rngs):
        self.first, self.second = Convolution(n_in, hidden, 3, rngs), Convolution(hidden, n_out, 3, rngs)

    def __call__(self, x: Input) -> Output:
        return self.second(_leaky(self.first(x)))


class Update(nnx.Module):
    """What the correlation corrects in a level's features and in both of its flows, at 1/8 whatever the level."""

    def __init__(self, channels: int, config: AMTConfig, rngs: nnx.Rngs):
        read = 2 * config.levels * (2 * config.radius + 1) ** 2
        self.correlation = Convolution(read, config.correlation, 1, rngs)
        self.flow1 = Convolution(4, 2 * config.flow, 7, rngs)
        self.flow2 = Convolution(2 * config.flow, config.flow, 3, rngs)
        self.joined = Convolution(config.correlation + config.flow, config.joined, 3, rngs)
        self.trunk = Chain(config.joined + 4 + channels, config.hidden, config.hidden, rngs)
        self.features = Chain(config.hidden, config.hidden, channels, rngs)
        self.flows = Chain(config.hidden, config.hidden, 4, rngs)

    def __call__(
        self, features: Float[Array, "b h w c"], flows: Float[Array, "b h w 4"], read: Float[Array, "b h w n"]
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w 4"]]:
        found = _leaky(self.correlation(read))
        moved = _leaky(self.flow2(_leaky(self.flow1(flows))))
        joined = _leaky(self.joined(jnp.concatenate([found, moved], axis=-1)))
        y = self.trunk(jnp.concatenate([joined, flows, features], axis=-1))
        return self.features(y), self.flows(y)


class AMT(nnx.Module):
    """Two frames to the one in their middle."""

    def __init__(self, config: AMTConfig, rngs: nnx.Rngs):
        channels, side, flows = config.channels, config.side, config.flows
        self.matching = Matching(config, rngs)
        pairs = zip((3, *channels), channels)
        self.pyramid = nnx.List(nnx.List([Activated(i, o, rngs, stride=2), Activated(o, o, rngs)]) for i, o in pairs)
        first, second, third, last = channels
        decoder = lambda n, n_out: Decoder(3 * n + 4, 3 * n, n_out, side, rngs)
        self.decoders = nnx.List(
            [
                Decoder(2 * last + 1, 2 * last, third + 4, side, rngs),
                decoder(third, second + 4), decoder(second, first + 4), decoder(first, 8 * flows),
            ]
        )  # fmt: skip
        self.updates = nnx.List(Update(n, config, rngs) for n in (third, second, first))
        self.correct = Activated(3 * flows, 6 * flows, rngs)
        self.correct_out = Convolution(6 * flows, 3, 3, rngs)
        self.config = config

    def __call__(self, before: Float[Array, "b h w 3"], after: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        """The RGB frames in the middle, all in [0, 1].

        Raises:
          ValueError: the frames' sides are no multiples of the config's `multiple`, or less than its `least`.
        """
        config = self.config
        batch, height, width, _ = before.shape
        if height % config.multiple or width % config.multiple or min(height, width) < config.least:
            raise ValueError(
                f"frames have {height} x {width} pixels; expected multiples of {config.multiple} "
                f"from {config.least} on."
            )
        mean = (before + after).mean((1, 2, 3), keepdims=True) / 2
        frames = (before - mean, after - mean)
        matched = self.matching(jnp.concatenate(frames))
        maps = _correlation(matched[:batch], matched[batch:], config.levels)
        scales = [jnp.concatenate(frames)]
        for stage in self.pyramid:
            x = scales[-1]
            for layer in stage:
                x = layer(x)
            scales.append(x)

        pairs = [(x[:batch], x[batch:]) for x in scales]
        time = jnp.full((batch, *scales[-1].shape[1:3], 1), MIDDLE)
        out = self.decoders[0](*pairs[-1], time)
        x, flows = self._updated(0, out[..., 4:], (out[..., :2], out[..., 2:4]), maps)
        for number in range(1, len(self.updates)):
            out = self.decoders[number](x, *_warped(pairs[-1 - number], flows), *flows)
            flows = (out[..., :2] + _finer(flows[0]), out[..., 2:4] + _finer(flows[1]))
            x, flows = self._updated(number, out[..., 4:], flows, maps)
        out = self.decoders[-1](x, *_warped(pairs[1], flows), *flows)
        flows = (_finer(flows[0]), _finer(flows[1]))
        return jnp.clip(self._blended(out, flows, frames, mean), 0, 1)

    def _updated(
        self, number: int, x: Input, flows: tuple[Flow, Flow], maps: Sequence[Sequence[Array]]
    ) -> tuple[Input, tuple[Flow, Flow]]:
        """Features and flows of a level, corrected by the update of that number."""
        radius, scale = self.config.radius, 2**number  # times as large as the correlation's map
        flow0, flow1 = (_resized(flow, 1 / scale) / scale for flow in flows)
        # A flow is from the middle to a frame: the whole way between the frames is this much longer.
        read = (_read(maps[0], flow1 / MIDDLE, radius), _read(maps[1], flow0 / (1 - MIDDLE), radius))
        pair = jnp.concatenate([flow0, flow1], axis=-1)
        change, moves = self.updates[number](_resized(x, 1 / scale), pair, jnp.concatenate(read, axis=-1))
        moves = scale * _resized(moves, scale)
        return x + _resized(change, scale), (flows[0] + moves[..., :2], flows[1] + moves[..., 2:])

    def _blended(
        self,
        out: Input,
        flows: tuple[Flow, Flow],
        frames: Sequence[Float[Array, "b h w 3"]],
        mean: Float[Array, "b 1 1 1"],
    ) -> Float[Array, "b h w 3"]:
        """The frame from what the last decoder adds to each pair of flows, and its mask and residue."""
        n = self.config.flows
        moves0, moves1, masks, residues = jnp.split(out, [2 * n, 4 * n, 5 * n], axis=-1)
        masks = jax.nn.sigmoid(masks)
        found = []
        for i in range(n):
            pair = slice(2 * i, 2 * i + 2)
            first, second = _warped(frames, (moves0[..., pair] + flows[0], moves1[..., pair] + flows[1]))
            mask = masks[..., i : i + 1]
            found.append(mask * first + (1 - mask) * second + mean + residues[..., 3 * i : 3 * i + 3])
        correction = self.correct_out(self.correct(jnp.concatenate(found, axis=-1)))
        return sum(found[1:], found[0]) / n + correction


def _leaky(x: Array) -> Array:
    return jax.nn.leaky_relu(x, 0.1)


def _resized(x: Input, scale: int | float) -> Output:
    """Bilinear, without antialiasing."""
    if scale == 1:
        return x
    rows, columns = (resampling.weights(n, round(n * scale), method="bilinear") for n in x.shape[1:3])
    return resampling.resize(x, rows, columns)


def _finer(flow: Flow) -> Float[Array, "b y x 2"]:
    return 2 * _resized(flow, 2)


def _warped(pictures: Sequence[Input], flows: Sequence[Flow]) -> list[Input]:
    """Each picture read where its flow points to, between samples bilinear, beyond its edges as at them."""
    return [jax.vmap(_sampled)(picture, flow) for picture, flow in zip(pictures, flows)]


def _sampled(picture: Float[Array, "h w c"], flow: Float[Array, "h w 2"]) -> Float[Array, "h w c"]:
    height, width = picture.shape[:2]
    x = jnp.clip(jnp.arange(width, dtype=flow.dtype)[None] + flow[..., 0], 0, width - 1)
    y = jnp.clip(jnp.arange(height, dtype=flow.dtype)[:, None] + flow[..., 1], 0, height - 1)
    across, down = ((places - jnp.floor(places))[..., None] for places in (x, y))
    left, top = (jnp.floor(places).astype(jnp.int32) for places in (x, y))
    right, bottom = jnp.minimum(left + 1, width - 1), jnp.minimum(top + 1, height - 1)
    upper = picture[top, left] * (1 - across) + picture[top, right] * across
    lower = picture[bottom, left] * (1 - across) + picture[bottom, right] * across
    return upper * (1 - down) + lower * down


def _correlation(
    before: Float[Array, "b h w d"], after: Float[Array, "b h w d"], levels: int
) -> tuple[list[Float[Array, "b n _ _"]], list[Float[Array, "b n _ _"]]]:
    """For each place of a frame its products with all places of the other, and their means over 2, 4, ... samples."""
    batch, height, width, dim = before.shape
    rows = [x.reshape(batch, height * width, dim) for x in (before, after)]
    products = jnp.einsum("bnd,bmd->bnm", *rows, precision=jax.lax.Precision.HIGHEST) / np.float32(dim**0.5)
    found = []
    for one in (products, products.swapaxes(1, 2)):
        maps = [one.reshape(batch, height * width, height, width)]
        for _ in range(levels - 1):
            y, x = (n // 2 for n in maps[-1].shape[2:])
            maps.append(maps[-1][:, :, : 2 * y, : 2 * x].reshape(batch, -1, y, 2, x, 2).mean((3, 5)))
        found.append(maps)
    return found[0], found[1]


def _read(maps: Sequence[Float[Array, "b n _ _"]], flow: Flow, radius: int) -> Float[Array, "b h w m"]:
    """Of each level of each place's map the square of 2 radius + 1 samples around where the flow points to.

    Samples beyond the map are 0. Of the square the columns come one after the other.
    """
    batch, height, width, _ = flow.shape
    places = jnp.stack(jnp.meshgrid(jnp.arange(width), jnp.arange(height)), axis=-1).astype(flow.dtype)
    centres = (places[None] + flow).reshape(batch, height * width, 2)
    squares = jax.vmap(jax.vmap(functools.partial(_square, radius=radius)))
    parts = [squares(level, centres / 2**i) for i, level in enumerate(maps)]
    return jnp.concatenate(parts, axis=-1).reshape(batch, height, width, -1)


def _square(values: Float[Array, "y x"], centre: Float[Array, "2"], *, radius: int) -> Float[Array, "m"]:
    # The samples of the square are whole steps apart: each lies in the same part of its cell.
    corner = jnp.floor(centre)
    across, down = centre - corner
    steps = jnp.arange(-radius, radius + 2, dtype=centre.dtype)
    height, width = values.shape
    x, y = corner[0] + steps, corner[1] + steps
    inside = ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))[None]
    rows, columns = (jnp.clip(at, 0, n - 1).astype(jnp.int32) for at, n in ((y, height), (x, width)))
    cells = jnp.where(inside, values[rows[:, None], columns[None]], 0)
    lines = cells[:-1] * (1 - down) + cells[1:] * down
    return (lines[:, :-1] * (1 - across) + lines[:, 1:] * across).T.reshape(-1)
