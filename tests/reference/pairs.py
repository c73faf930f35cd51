"""The published sample, step by step on whole frames: grey, mirror, jitter, crop, brightness, mirror each crop."""

import cv2
import numpy as np

from tests.reference.crops import crop


def published_pair(frames, boxes, first, second, rng, *, px, factors, center_jitter, scale_jitter, gray, brightness):
    """`px` and `factors` are (template, search); draws come from `rng` in the order in which the package draws."""
    mirrored, grey = rng.random() < 0.5, rng.random() < gray
    normal, uniform = rng.normal(0, 1, 2), rng.random(2)
    scales = 1 + brightness * rng.uniform(-1, 1, 2)
    flips = rng.random(2) < 0.5
    out = []
    for k, i in enumerate((first, second)):
        frame, box = frames[i].copy(), boxes[i].copy()
        if grey:
            frame[..., :3] = cv2.cvtColor(np.ascontiguousarray(frame[..., :3]), cv2.COLOR_RGB2GRAY)[..., None]
        around = box.copy()
        if k == 1:
            size = box[2:] * np.exp(normal * scale_jitter)
            center = box[:2] + box[2:] / 2 + (uniform - 0.5) * np.sqrt(size.prod()) * center_jitter
            around = np.concatenate([center - size / 2, size])
        if mirrored:
            frame = np.ascontiguousarray(frame[:, ::-1])
            box[0] = frame.shape[1] - box[0] - box[2]
            around[0] = frame.shape[1] - around[0] - around[2]
        patch, resize = crop(frame, around, factors[k], px[k])
        shift = (box[:2] + box[2:] / 2 - around[:2] - around[2:] / 2) * resize
        inside = np.concatenate([(px[k] - 1) / 2 + shift, box[2:] * resize]) / px[k]
        patch = np.clip(np.rint(patch * scales[k]), 0, 255)
        if flips[k]:
            patch = patch[:, ::-1]
            inside[0] = 1 - inside[0]
        out.append((patch, inside))
    return out[0][0], out[1][0], out[1][1]
