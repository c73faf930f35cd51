"""One regularized step on one flat vector, with dense matrices in float64 and no attention to cost."""

import numpy as np


class DenseStep:
    """State and step of one operation.

    Args: start values, eigenvectors [K, n] and eigenvalues [K], what they leave out of the diagonal [n], settings by name.
    """

    def __init__(
        self,
        values,
        anchor,
        vectors,
        eigenvalues,
        remainder=None,
        *,
        scale,
        residual,
        mode,
        strength,
        damping=0.0,
        low=0.25,
        high=0.65,
        damped="both",
        kept=False,
        share=1.0,
        **adam,
    ):
        self.values, self.anchor = np.array(values, np.float64), np.array(anchor, np.float64)
        self.n = len(self.values)
        v, lam = np.asarray(vectors, np.float64), np.asarray(eigenvalues, np.float64)
        self.matrix = sum((lam[k] / scale * np.outer(v[k], v[k]) for k in range(len(lam))), np.zeros((self.n, self.n)))
        ridge = residual / (self.n - len(lam)) / (share * strength) if share * strength else np.inf
        self.projector = sum((lam[k] / (lam[k] + ridge) * np.outer(v[k], v[k]) for k in range(len(lam))), np.zeros((self.n, self.n)))
        remainder = np.zeros(self.n) if remainder is None else np.asarray(remainder, np.float64)
        self.diagonal = np.diag(remainder / scale)
        self.diagonal_projector = np.diag(np.divide(remainder, remainder + ridge, out=np.zeros(self.n), where=remainder > 0))
        self.matrix, self.diagonal = share * self.matrix, share * self.diagonal
        self.mode, self.strength, self.damping, self.low, self.high, self.adam = mode, strength, damping, low, high, adam
        self.damped, self.kept = damped, kept
        self.first, self.second, self.t = np.zeros(self.n), np.zeros(self.n), 0

    def step(self, gradient, w, prior_rank=None, transfer_rank=None):
        lr, (b1, b2), eps, decay = (self.adam[k] for k in ("lr", "betas", "eps", "weight_decay"))
        g = np.array(gradient, np.float64)
        if self.mode == "penalty":
            g = g + self.strength * w * (self.matrix + self.diagonal) @ (self.values - self.anchor)
        if self.mode == "projection":
            g = g - w * self.projector @ g
            g = g - w * self.diagonal_projector @ g
        self.t += 1
        self.first = b1 * self.first + (1 - b1) * g
        self.second = b2 * self.second + (1 - b2) * g**2
        self.magnitude = np.sqrt(self.second / (1 - b2**self.t))
        u = self.first / (1 - b1**self.t) / (self.magnitude + eps)
        factor = 1.0
        if self.damping:
            transfer = 0.5 if transfer_rank is None else transfer_rank(self.magnitude)
            transfer = {"both": transfer, "opposed": 1 - transfer, "prior": np.full(self.n, 0.5)}[self.damped]
            rank = transfer if prior_rank is None else w * prior_rank + (1 - w) * transfer
            factor = 1 - self.damping * (self.low + (self.high - self.low) * rank)
            if self.kept:
                factor = factor / (1 - self.damping * (self.low + self.high) / 2)
        self.values = self.values - lr * factor * (u + decay * self.values)
        if self.mode == "proximal":
            # argmin over x of |x - theta|^2 / 2 + lr lambda w (x - anchor)^T A (x - anchor) / 2, by its normal equations; then of the rest.
            for matrix in (self.matrix, self.diagonal):
                a = lr * self.strength * w * matrix
                self.values = np.linalg.solve(np.eye(self.n) + a, self.values + a @ self.anchor)
        return self.values
