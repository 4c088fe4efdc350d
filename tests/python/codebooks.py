"""Audio and images as tokens, made on the spot: mu-law codes of tones, nearest entries of a k-means codebook for image patches.
One vocabulary holds both, and three marks: 256 + 768 + 3 = 1,027 ids, no power of two."""

from __future__ import annotations

import numpy as np

AUDIO_CODES, IMAGE_CODES = 256, 768
IMAGE_BEGIN = AUDIO_CODES
AUDIO, IMAGE, END = range(AUDIO_CODES + IMAGE_CODES, AUDIO_CODES + IMAGE_CODES + 3)
VOCAB_SIZE = END + 1


def mu_law(signal: np.ndarray) -> np.ndarray:
    """[-1, 1] to 0 ... 255, finer near zero."""
    squeezed = np.sign(signal) * np.log1p(255 * np.abs(signal)) / np.log(256)
    return np.clip(((squeezed + 1) * 128).astype(np.int64), 0, 255)


def tone(rng: np.random.Generator, samples: int, pitches: tuple[int, ...]) -> np.ndarray:
    time = np.arange(samples) / 64
    return 0.8 * np.sin(2 * np.pi * rng.choice(pitches) * time) + rng.normal(0, 0.01, samples)


def picture(rng: np.random.Generator, size: int = 12) -> np.ndarray:
    """Grey stripes of some direction and width."""
    rows, columns = np.mgrid[:size, :size]
    angle = rng.choice([0.0, np.pi / 4, np.pi / 2])
    return 0.5 + 0.5 * np.sin((rows * np.sin(angle) + columns * np.cos(angle)) * rng.choice([0.7, 1.3])) + rng.normal(0, 0.01, (size, size))


def patches(image: np.ndarray) -> np.ndarray:
    """[size, size] to [patches, 4]: squares of two by two, row by row."""
    half = image.shape[0] // 2
    return image.reshape(half, 2, half, 2).transpose(0, 2, 1, 3).reshape(half * half, 4)


def nearest(vectors: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    distances = (codebook**2).sum(1) - 2 * vectors @ codebook.T
    return distances.argmin(1)


def k_means(vectors: np.ndarray, entries: int, rng: np.random.Generator, rounds: int = 3) -> np.ndarray:
    codebook = vectors[rng.choice(len(vectors), entries, replace=False)].copy()
    for _ in range(rounds):
        owner = nearest(vectors, codebook)
        counts = np.bincount(owner, minlength=entries)
        sums = np.stack([np.bincount(owner, vectors[:, d], entries) for d in range(vectors.shape[1])], 1)
        codebook[counts > 0] = sums[counts > 0] / counts[counts > 0, None]
    return codebook


def documents(count: int, seed: int, pitches: tuple[int, ...]) -> tuple[list[np.ndarray], list[np.ndarray], list[float]]:
    """In turn a sound, [AUDIO] codes [END], all of it trained on, and a picture with its sound, [AUDIO] codes [IMAGE] patches
    [END], the picture trained on with weight 2: as a model that draws what it hears would be taught."""
    codebook = k_means(np.concatenate([patches(picture(np.random.default_rng(i))) for i in range(60)]), IMAGE_CODES,
                       np.random.default_rng(0))
    rng = np.random.default_rng(seed)
    tokens, masks, weights = [], [], []
    for i in range(count):
        sound = np.r_[AUDIO, mu_law(tone(rng, 40 if i % 2 == 0 else 12, pitches))]
        drawn = [] if i % 2 == 0 else np.r_[IMAGE, IMAGE_BEGIN + nearest(patches(picture(rng)), codebook)]
        document = np.r_[sound, drawn, END].astype(np.int64)
        mask = np.ones(len(document), np.uint8)
        mask[: 1 if i % 2 == 0 else len(sound) + 1] = 0
        tokens.append(document)
        masks.append(mask)
        weights.append(1.0 if i % 2 == 0 else 2.0)
    return tokens, masks, weights
