"""CharaConsist once more, slowly and directly: float64 numpy, one token after the other, everything cached.

Written from the description of the method and of FLUX.1; shares no code with the package. The identity picture is made
first, with the keys, values and outputs of all its steps kept; then each frame by itself. Positions of appended keys
are appended to a list, and so are their visibilities.
"""

import numpy as np
from scipy import ndimage


def linear(p, name, x, layer=None):
    kernel, bias = p[f"{name}.kernel"], p[f"{name}.bias"]
    return x @ (kernel if layer is None else kernel[layer]) + (bias if layer is None else bias[layer])


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def normalised(x, eps):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)


def sinusoids(t, size):
    frequencies = np.exp(-np.log(10000.0) * np.arange(size // 2) / (size // 2))
    return np.concatenate([np.cos(1000 * t * frequencies), np.sin(1000 * t * frequencies)])


def turned(x, place, axes):
    """One token's query or key [heads, head_dim] at (time, row, column)."""
    out, start = x.copy(), 0
    for width, where in zip(axes, place):
        for i in range(0, width, 2):
            angle = where * 10000.0 ** (-i / width)
            a, b = x[:, start + i], x[:, start + i + 1]
            out[:, start + i] = a * np.cos(angle) - b * np.sin(angle)
            out[:, start + i + 1] = a * np.sin(angle) + b * np.cos(angle)
        start += width
    return out


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


class Network:
    """FLUX.1 for one picture. attend(("double" or "single", layer), q, k, v) gets all tokens, the text first."""

    def __init__(self, parameters, config):
        self.p = {name: np.asarray(value, np.float64) for name, value in parameters.items()}
        self.c = config

    def embedding(self, name, x):
        return linear(self.p, f"{name}.second", silu(linear(self.p, f"{name}.first", x)))

    def projections(self, name, y, layer):
        heads = lambda part: linear(self.p, f"{name}.{part}", y, layer).reshape(len(y), self.c.heads, -1)
        norm = lambda x, part: (
            x / np.sqrt((x**2).mean(-1, keepdims=True) + self.c.eps) * self.p[f"{name}.{part}.scale"][layer]
        )
        return norm(heads("query"), "query_norm"), norm(heads("key"), "key_norm"), heads("value")

    def __call__(self, tokens, t, text, pooled, guidance, attend):
        p, c, m = self.p, self.c, len(text)
        condition = self.embedding("time_embedding", sinusoids(t, c.freq_dim))
        condition = condition + self.embedding("pooled_embedding", pooled)
        if c.guidance:
            condition = condition + self.embedding("guidance_embedding", sinusoids(guidance, c.freq_dim))
        condition = silu(condition)
        x, words = linear(p, "patch_embedding", tokens), linear(p, "text_embedding", text)
        for layer in range(c.double_layers):
            streams, rows, parts = {"text": words, "visual": x}, {}, []
            for name, y in streams.items():
                rows[name] = linear(p, f"double_blocks.{name}.modulation", condition, layer).reshape(6, -1)
                shift, scale = rows[name][:2]
                parts.append(
                    self.projections(f"double_blocks.{name}.qkv", normalised(y, c.eps) * (1 + scale) + shift, layer)
                )
            out = attend(("double", layer), *(np.concatenate(pair) for pair in zip(*parts)))
            out = {"text": out[:m], "visual": out[m:]}
            for name, y in streams.items():
                _, _, gate, shift, scale, gate_mlp = rows[name]
                y = y + gate * linear(p, f"double_blocks.{name}.out", out[name].reshape(y.shape), layer)
                z = normalised(y, c.eps) * (1 + scale) + shift
                z = gelu(linear(p, f"double_blocks.{name}.mlp.first", z, layer))
                streams[name] = y + gate_mlp * linear(p, f"double_blocks.{name}.mlp.second", z, layer)
            words, x = streams["text"], streams["visual"]
        x = np.concatenate([words, x])
        for layer in range(c.single_layers):
            shift, scale, gate = linear(p, "single_blocks.modulation", condition, layer).reshape(3, -1)
            y = normalised(x, c.eps) * (1 + scale) + shift
            out = attend(("single", layer), *self.projections("single_blocks.qkv", y, layer))
            y = np.concatenate([out.reshape(x.shape), gelu(linear(p, "single_blocks.mlp", y, layer))], axis=-1)
            x = x + gate * linear(p, "single_blocks.out", y, layer)
        shift, scale = linear(p, "head.shift", condition), linear(p, "head.scale", condition)
        return linear(p, "head.projection", normalised(x[m:], c.eps) * (1 + scale) + shift)


class Group:
    """One group. method: the constants (a `CharaConsist`, read as plain numbers). grid: rows and columns of tokens.

    texts, pooled, words: lists, the identity picture's first; words as in `Texts`. sigmas: of the sampler, one more
    than steps. `run` gives tokens of latents at the end, the identity picture's first.
    """

    def __init__(self, network, method, grid, texts, pooled, words, sigmas, guidance, characters):
        self.net, self.method, self.grid = network, method, grid
        self.texts, self.pooled, self.words = texts, pooled, words
        self.sigmas, self.guidance, self.characters = sigmas, guidance, characters
        self.places = [(0, i // grid[1], i % grid[1]) for i in range(grid[0] * grid[1])]
        self.margins = {"match": [], "threshold": [], "mask": []}

    def measured(self, block):
        return block[0] == "single" or self.method.double_blocks

    def shares(self, block, what):
        every = self.method.foreground_every if what == "foreground" else self.method.background_every
        return self.measured(block) and block[1] % every == 0

    def evaluate(self, picture, x, step, *, tracking=None, foreground=False, background=False, merge=0.0):
        """The velocity; keys, values and outputs of every block before merging; and mean scores of words."""
        axes, m = self.net.c.axes, len(self.texts[picture])
        places = [(0, 0, 0)] * m + self.places
        kept, scores, count = {}, np.zeros((len(self.places), 2 + self.characters)), 0
        words = self.words[picture]

        def attend(block, q, k, v):
            nonlocal scores, count
            q_turned = np.stack([turned(x, place, axes) for x, place in zip(q, places)])
            k_turned = np.stack([turned(x, place, axes) for x, place in zip(k, places)])
            if self.measured(block):
                real = [i for i in range(m) if words[i] >= 0]
                raw = np.einsum("nhd,mhd->hnm", q_turned[m:], k_turned[real])
                read, said = softmax(raw).sum(0), np.array([words[i] for i in real])
                kinds = [said == 0, said > 0, *(said == c + 1 for c in range(self.characters))]
                scores = scores + np.stack(
                    [read[:, kind].mean(1) if kind.any() else np.full(len(read), -1.0) for kind in kinds], axis=1
                )
                count += 1
            keys, values = list(k_turned), list(v)
            visible = [[True] * len(q)] * len(q)
            visible = [list(column) for column in visible]  # [key][query]
            cache = self.cache[step][block] if (foreground or background) else None
            if foreground and self.shares(block, "foreground"):
                for j, place in enumerate(self.places):
                    if tracking["tracked"][j]:
                        i = tracking["match"][j]
                        keys.append(turned(cache["k"][i], place, axes))
                        values.append(cache["v"][i])
                        visible.append([False] * m + [shown == tracking["tracked"][j] for shown in tracking["shown"]])
            if background and self.shares(block, "background"):
                for i, place in enumerate(self.places):
                    if tracking["identity"][i] == 0 and tracking["shown"][i] == 0:
                        keys.append(turned(cache["k"][i], place, axes))
                        values.append(cache["v"][i])
                        visible.append([False] * m + [shown == 0 for shown in tracking["shown"]])
            logits = np.einsum("qhd,khd->hqk", q_turned, np.stack(keys)) / np.sqrt(q.shape[-1])
            logits = np.where(np.array(visible).T[None], logits, -np.inf)
            out = np.einsum("hqk,khd->qhd", softmax(logits), np.stack(values))
            kept[block] = {"k": k[m:], "v": v[m:], "out": out[m:].copy()}
            if foreground and self.shares(block, "foreground"):
                for j in range(len(self.places)):
                    if tracking["tracked"][j]:
                        a = merge * tracking["similarity"][j]
                        out[m + j] = (1 - a) * out[m + j] + a * cache["out"][tracking["match"][j]]
            return out

        velocity = self.net(x, self.sigmas[step], self.texts[picture], self.pooled[picture], self.guidance, attend)
        return velocity, kept, scores / count

    def shown(self, scores):
        self.margins["mask"].append(np.abs(scores[:, 1] - scores[:, 0]).min())
        foreground = (scores[:, 1] >= scores[:, 0]).reshape(self.grid)
        square = lambda side: np.ones((side, side), bool)
        foreground = ndimage.binary_erosion(foreground, square(self.method.erode), border_value=1)
        foreground = ndimage.binary_dilation(foreground, square(self.method.dilate)).ravel()
        return [1 + int(np.argmax(row[2:])) if fg else 0 for row, fg in zip(scores, foreground)]

    def points(self, kept, step, shown, identity):
        blocks = [block for block in kept if self.measured(block)]
        joined = lambda x: x.reshape(len(x), -1)
        unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
        total = sum(unit(joined(kept[b]["out"])) @ unit(joined(self.cache[step][b]["out"])).T for b in blocks)
        total = total / len(blocks)
        best = np.sort(total, axis=1)
        self.margins["match"].append((best[:, -1] - best[:, -2]).min())
        self.margins["threshold"].append(np.abs(best[:, -1] - self.method.threshold).min())
        match, similarity = total.argmax(1), total.max(1)
        pairs = [
            shown[j] if shown[j] == identity[i] and similarity[j] > self.method.threshold else 0
            for j, i in enumerate(match)
        ]
        return {"match": match, "similarity": similarity, "tracked": pairs}

    def at(self, step, steps):
        return round(step * steps / self.method.of_steps)

    def merge(self, step, steps):
        start, hold, end = (self.at(getattr(self.method, f"merge_{n}"), steps) for n in ("from", "hold", "until"))
        if step < start or step >= end:
            return 0.0
        fall = 1.0 if step < hold else 0.5 * (1 + np.cos(np.pi * (step - hold) / (end - hold)))
        return self.method.merge_weight * fall

    def shared(self, step, steps):
        return self.at(self.method.share_from, steps) <= step < self.at(self.method.share_until, steps)

    def moved(self, x, velocity, step):
        return x + (self.sigmas[step + 1] - self.sigmas[step]) * velocity

    def run(self, noise):
        method, steps = self.method, len(self.sigmas) - 1
        self.cache, identity, x = {}, {}, noise
        for step in range(steps):  # the identity picture; its keys, values and outputs of all steps
            velocity, self.cache[step], scores = self.evaluate(0, x, step)
            identity[step] = self.shown(scores)
            x = self.moved(x, velocity, step)
        pictures, last = [x], None if method.match_at is None else self.at(method.match_at, steps)
        for picture in range(1, len(self.texts)):
            run = self.every_step if last is None else self.once
            pictures.append(run(picture, noise, steps, identity, last))
        return pictures

    def every_step(self, picture, noise, steps, identity, _):
        x = noise
        for step in range(steps):
            shares, tracking = self.shared(step, steps), None
            if shares:
                _, kept, scores = self.evaluate(picture, x, step)
                shown = self.shown(scores)
                tracking = {"shown": shown, "identity": identity[step]}
                tracking |= self.points(kept, step, shown, identity[step])
            velocity, _, _ = self.evaluate(
                picture, x, step, tracking=tracking, foreground=shares,
                background=shares and self.method.keep_background, merge=self.merge(step, steps),
            )  # fmt: skip
            x = self.moved(x, velocity, step)
        return x

    def once(self, picture, noise, steps, identity, last):
        tracking = {"identity": identity[last], "shown": [0] * len(self.places)}
        for phase in ("ahead", "picture"):
            x = noise
            for step in range(last + 1 if phase == "ahead" else steps):
                shares = self.shared(step, steps)
                velocity, kept, scores = self.evaluate(
                    picture, x, step, tracking=tracking, foreground=shares and phase == "picture",
                    background=shares and self.method.keep_background, merge=self.merge(step, steps),
                )  # fmt: skip
                if step <= last:
                    tracking["shown"] = self.shown(scores)
                if step == last:
                    tracking |= self.points(kept, step, tracking["shown"], tracking["identity"])
                x = self.moved(x, velocity, step)
        return x
