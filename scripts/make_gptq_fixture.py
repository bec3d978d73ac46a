#!/usr/bin/env python3
"""Writes tests/fixtures/solve/gptq.json: a small matrix, the moments of its inputs, and the codes and scales that plain GPTQ gives.

GPTQ as published (Frantar et al. 2022, algorithm 1): damped moments, the upper Cholesky factor of their inverse, columns in order, each
error spread over the columns behind; 4-bit symmetric groups of 32 with f16 scales `absmax / 7.5` of the values as they stand when the
group is reached. Everything in float64. Needs numpy only:

    python scripts/make_gptq_fixture.py
"""

import json
import pathlib

import numpy as np

ROWS, COLS, GROUP, TOKENS, DAMPING = 12, 96, 32, 400, 0.01


def gptq(weights, moments):
    w = weights.astype(np.float64).copy()
    h = moments.astype(np.float64).copy()
    h[np.diag_indices(COLS)] += DAMPING * np.mean(np.diag(h))
    upper = np.linalg.cholesky(np.linalg.inv(h)).T
    codes = np.zeros((ROWS, COLS), dtype=int)
    scales = np.zeros((ROWS, COLS // GROUP))
    for j in range(COLS):
        if j % GROUP == 0:
            absmax = np.abs(w[:, j : j + GROUP]).max(axis=1)
            scales[:, j // GROUP] = (absmax / 7.5).astype(np.float16).astype(np.float64)
        scale = scales[:, j // GROUP]
        q = np.clip(np.rint(w[:, j] / scale), -8, 7)
        codes[:, j] = q.astype(int) + 8
        error = (w[:, j] - q * scale) / upper[j, j]
        w[:, j:] -= np.outer(error, upper[j, j:])
    return codes, scales


def main():
    rng = np.random.default_rng(20260814)
    weights = rng.normal(0, 0.05, (ROWS, COLS)).astype(np.float32)
    mixing = rng.normal(0, 1, (COLS // 8, COLS))
    inputs = rng.normal(0, 1, (TOKENS, COLS)) + rng.normal(0, 1, (TOKENS, COLS // 8)) @ mixing
    moments = (inputs.T @ inputs).astype(np.float32)
    codes, scales = gptq(weights, moments)
    out = {
        "rows": ROWS,
        "cols": COLS,
        "weights": [float(v) for v in weights.ravel()],
        "moments": [float(v) for v in moments.ravel()],
        "codes": [int(v) for v in codes.ravel()],
        "scales": [float(v) for v in scales.ravel()],
    }
    path = pathlib.Path(__file__).parent.parent / "tests/fixtures/solve/gptq.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(out) + "\n")


if __name__ == "__main__":
    main()
