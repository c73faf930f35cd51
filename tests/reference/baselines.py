"""L2-SP and EWC around AdamW, element by element in Python floats."""

import math


class Element:
    """One parameter's value under AdamW with a quadratic anchor."""

    def __init__(self, value, origin, h, *, strength, decoupled, lr, betas, eps, weight_decay):
        self.value, self.origin, self.h, self.strength, self.decoupled = value, origin, h, strength, decoupled
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.m = self.v = 0.0
        self.t = 0

    def step(self, g):
        if not self.decoupled:
            g += self.strength * self.h * (self.value - self.origin)
        b1, b2 = self.betas
        self.t += 1
        self.m = b1 * self.m + (1 - b1) * g
        self.v = b2 * self.v + (1 - b2) * g * g
        direction = self.m / (1 - b1**self.t) / (math.sqrt(self.v / (1 - b2**self.t)) + self.eps)
        self.value -= self.lr * (direction + self.weight_decay * self.value)
        if self.decoupled:
            self.value = proximal(self.value, self.origin, self.lr * self.strength * self.h)


def proximal(value, origin, s):
    """argmin over x of (x - value)^2 / 2 + s (x - origin)^2 / 2, by bisection of the derivative."""
    low, high = min(value, origin), max(value, origin)
    for _ in range(200):
        x = (low + high) / 2
        if (x - value) + s * (x - origin) > 0:
            high = x
        else:
            low = x
    return (low + high) / 2
