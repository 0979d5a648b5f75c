"""The forward pass in plain lines, from the words of arXiv 2506.08854 and of docs/paper/deviations.md alone.

It shares no code with ``src`` and uses no ready-made layer but the matrix product: attention, norms, activations and
losses are written out. `released=True` follows the released code where it departs from the words. Weights arrive as
a dictionary of arrays under this file's own names; masks are given; there is no dropout, as in evaluation.
"""

from __future__ import annotations

import math

import numpy as np


def forward(w, tokens, expression, keep, *, cross_heads, fusion_heads, gene_tokens, blocks, released):
    """Image embedding, gene embedding and reconstruction of a batch, row by row."""
    image = np.stack([head(w, "image head", patch.mean(axis=0)) for patch in tokens])
    gene = np.stack([head(w, "gene head", spot) for spot in expression])
    rebuilt = []
    for patch, spot, visible in zip(tokens, expression, keep, strict=True):
        wide = elu(linear(w, "gene tokens", spot))
        key = wide.reshape(gene_tokens, -1)
        query = linear(w, "image tokens", patch) * visible
        fused = attention(w, "cross", query, key, cross_heads)
        for number in range(blocks):
            name = "block 0" if released else f"block {number}"  # released: one block object, used twice
            normed = layer_norm(w, f"{name} first norm", fused)
            fused = fused + attention(w, f"{name} attention", normed, normed, fusion_heads)
            hidden = gelu(linear(w, f"{name} mlp in", layer_norm(w, f"{name} second norm", fused)))
            fused = fused + linear(w, f"{name} mlp out", hidden)
            share = softmax(fused @ key.T / math.sqrt(fused.shape[1]))
            fused = fused + linear(w, f"{name} V1", fused) + share @ linear(w, f"{name} V2", key)
        rebuilt.append(fused.mean(axis=0))
    return image, gene, np.stack(rebuilt)


def losses(image, gene, rebuilt, *, temperature, cosine, released):
    """Contrastive loss, reconstruction loss (MSE to the image embedding) and total."""
    left, right = image, gene
    if cosine:
        left = np.stack([row / math.sqrt(sum(row**2)) for row in image])
        right = np.stack([row / math.sqrt(sum(row**2)) for row in gene])
    n = len(left)
    logits = np.array([[right[i] @ left[j] / temperature for j in range(n)] for i in range(n)])
    alike = np.array(
        [[(left[i] @ left[j] + right[i] @ right[j]) / 2 * temperature for j in range(n)] for i in range(n)]
    )
    first = softmax(alike)
    second = first.T if released else softmax(alike.T)  # released: the transpose, whose rows are no distributions
    pairs = (cross_entropy(logits, first) + cross_entropy(logits.T, second)) / 2
    contrastive, reconstruction = float(pairs.mean()), float(((rebuilt - image) ** 2).mean())
    # released: the logarithm of each pair's loss, and then the mean
    of_pairs = float(np.log(1 + pairs).mean()) if released else math.log(1 + contrastive)
    return contrastive, reconstruction, of_pairs + math.log(1 + reconstruction)


def head(w, name, x):
    h = linear(w, f"{name} W1", x)
    return layer_norm(w, f"{name} norm", h + linear(w, f"{name} W2", gelu(h)))


def linear(w, name, x):
    return x @ w[f"{name} weight"].T + w[f"{name} bias"]


def layer_norm(w, name, x):
    centred = x - x.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    return centred / deviation * w[f"{name} weight"] + w[f"{name} bias"]


def attention(w, name, query, key, heads):
    q, k, v = (linear(w, f"{name} {part}", x) for part, x in (("Q", query), ("K", key), ("V", key)))
    width = q.shape[1] // heads
    found = []
    for start in range(0, q.shape[1], width):
        part = slice(start, start + width)
        found.append(softmax(q[:, part] @ k[:, part].T / math.sqrt(width)) @ v[:, part])
    return linear(w, f"{name} out", np.concatenate(found, axis=1))


def softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def cross_entropy(logits, targets):
    log_share = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -(targets * log_share).sum(axis=1)


def elu(x):
    return np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1)


def gelu(x):
    return x * np.vectorize(lambda each: (1 + math.erf(each / math.sqrt(2))) / 2)(x)
