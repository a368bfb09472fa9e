"""Pinhole camera: rays, where they hit boxes, cylinders and spheres, and surface normals from depth."""

import torch
from torch import Tensor
from torch.nn import functional as F

BOX, CYLINDER, SPHERE = 0, 1, 2


def rays(height: int, width: int, focal: float, device: torch.device | str = "cpu") -> Tensor:
    """Directions (3, H, W) seen by the pixels, third component one; principal point in the centre.

    Camera frame: x to the right, y down, z into the scene; a point is depth * ray. `focal` is in pixels.

    >>> rays(2, 2, 1.0)[:, 0, 0]
    tensor([-0.5000, -0.5000,  1.0000])
    """
    y = (torch.arange(height, device=device, dtype=torch.float32) - (height - 1) / 2) / focal
    x = (torch.arange(width, device=device, dtype=torch.float32) - (width - 1) / 2) / focal
    return torch.stack(
        [x.expand(height, width), y[:, None].expand(height, width), torch.ones_like(x).expand(height, width)]
    )


def _window(planes: Tensor, powers: tuple[tuple[int, int], ...], radius: int) -> list[Tensor]:
    """Sums of planes (N, 1, H, W) times dx^a dy^b over a square window, zero outside the image."""
    d = torch.arange(-radius, radius + 1, device=planes.device, dtype=planes.dtype)
    kernels = {a: (d**a).view(1, 1, 1, -1) for a in {a for pair in powers for a in pair}}
    along = {a: F.conv2d(planes, kernels[a], padding=(0, radius)) for a in {a for a, _ in powers}}
    return [F.conv2d(along[a], kernels[b].transpose(2, 3), padding=(radius, 0)) for a, b in powers]


def normals_from_depth(depth: Tensor, focal: float, *, noise: float = 0.0, radius: int | None = None) -> Tensor:
    """Unit normals (N, 3, H, W), towards the camera, from depth (N, H, W); zero where depth is missing (0).

    A plane n . X = d seen through pixel ray v has 1/Z = (n/d) . v: linear in the pixel. So an affine function
    is fitted to 1/Z by least squares in a square window of `radius` (default: width / 32, at least 2 pixels),
    and n is minus its coefficients (a, b, c), scaled to length one: exact for a plane at any slant. Each pixel
    then takes the mean over the windows centred on itself and on its eight neighbours `radius` away, weighted
    by exp(-(e - min e) / e0), where e is a fit's mean squared relative residual and e0 = (noise / Z)^2 what
    depth noise of that many metres explains (a soft form of Kuwahara's filter): windows that straddle an edge
    drop out, and flat steps of a quantised depth are not taken for surfaces.
    Raises ValueError for a wrong shape, or for depth that is negative or not finite.

    >>> flat = normals_from_depth(torch.full((1, 16, 16), 2.0), focal=16.0)
    >>> [round(v, 4) + 0.0 for v in flat[0, :, 8, 8].tolist()]
    [0.0, 0.0, -1.0]
    """
    if depth.dim() != 3:
        raise ValueError(f"depth: must be (N, H, W), found {tuple(depth.shape)}")
    if not bool((torch.isfinite(depth) & (depth >= 0)).all()):
        raise ValueError("depth: must be finite and not negative (0 where missing), found other values")
    h, w = depth.shape[1:]
    r = radius if radius is not None else max(2, round(w / 32))
    mask = (depth > 0).float()[:, None]
    q = torch.where(mask > 0, 1 / depth.float().clamp(min=1e-6)[:, None], 0.0)
    normal, residual = _planes(q, mask, focal, r)
    floor = (noise * q).square() + 1e-9  # the constant keeps the order of exact fits from being rounding alone
    around = F.pad(residual, (r, r, r, r), mode="constant", value=torch.inf)
    normals = F.pad(normal, (r, r, r, r))
    places = [(slice(i, i + h), slice(j, j + w)) for i in (0, r, 2 * r) for j in (0, r, 2 * r)]
    least = torch.stack([around[:, :, y, x] for y, x in places]).amin(0)
    least = torch.where(torch.isfinite(least), least, 0.0)
    total = torch.zeros_like(normal)
    for y, x in places:
        total += torch.exp((least - around[:, :, y, x]) / floor) * normals[:, :, y, x]
    return torch.where(mask > 0, F.normalize(total, dim=1), 0.0)


def _planes(q: Tensor, mask: Tensor, focal: float, r: int) -> tuple[Tensor, Tensor]:
    """Normal (N, 3, H, W) and mean squared relative residual (N, 1, H, W; inf without a fit) of each window."""
    h, w = q.shape[-2:]
    weight = mask[:1] if bool((mask == mask[:1]).all()) else mask  # usually nothing is missing: one image's sums do
    s, sx, sy, sxx, sxy, syy = _window(weight, ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2)), r)
    tq, tx, ty = _window(q, ((0, 0), (1, 0), (0, 1)), r)
    (tqq,) = _window(q * q, ((0, 0),), r)
    count = s.clamp(min=1)
    mx, my, mq = sx / count, sy / count, tq / count
    cxx, cxy, cyy = sxx - sx * mx, sxy - sx * my, syy - sy * my
    cxq, cyq, cqq = tx - tq * mx, ty - tq * my, tqq - tq * mq
    determinant = cxx * cyy - cxy * cxy
    usable = (s >= 6) & (determinant > 1e-3 * (cxx * cyy).clamp(min=1e-6))
    safe = torch.where(usable, determinant, 1.0)
    gx, gy = (cxq * cyy - cyq * cxy) / safe, (cyq * cxx - cxq * cxy) / safe
    residual = (cqq - gx * cxq - gy * cyq).clamp(min=0) / count / mq.clamp(min=1e-6).square()
    y = torch.arange(h, device=q.device)[:, None] - (h - 1) / 2  # pixels from the principal point
    x = torch.arange(w, device=q.device) - (w - 1) / 2
    constant = mq - gx * (mx + x) - gy * (my + y)
    normal = -F.normalize(torch.cat([gx * focal, gy * focal, constant], 1), dim=1)
    return normal, torch.where(usable, residual, torch.inf)


def turned(v: Tensor, angle: Tensor) -> Tensor:
    """Vectors (..., 3) turned about the y axis."""
    cos, sin = angle.cos(), angle.sin()
    x, y, z = v.unbind(-1)
    return torch.stack(torch.broadcast_tensors(cos * x + sin * z, y, cos * z - sin * x), -1)


def slabs(origin: Tensor, ray: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    """Distances at which a ray enters and leaves a box centred on the origin, one per axis: (..., 3) each."""
    inverse = 1 / torch.where(ray.abs() < 1e-9, torch.full_like(ray, 1e-9), ray)
    a, b = (-half - origin) * inverse, (half - origin) * inverse
    return torch.minimum(a, b), torch.maximum(a, b)


def hit(kind: int, o: Tensor, v: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    """First hit in the shape's own frame: distance (...; inf where missed) and outward normal (..., 3)."""
    if kind == BOX:
        near, far = slabs(o, v, half)
        t, axis = near.max(-1)
        met = (t < far.amin(-1)) & (t > 1e-3)
        normal = -v.sign() * F.one_hot(axis, 3)
        return torch.where(met, t, torch.inf), normal
    flat = torch.tensor([1.0, 0.0, 1.0] if kind == CYLINDER else [1.0, 1.0, 1.0], device=v.device)
    ov, oo, vv = (o * v * flat).sum(-1), (o * o * flat).sum(-1), (v * v * flat).sum(-1).clamp(min=1e-9)
    root = ov * ov - vv * (oo - half[..., 0].square())
    t = (-ov - root.clamp(min=0).sqrt()) / vv
    met = (root > 0) & (t > 1e-3)
    point = o + t[..., None] * v
    normal = F.normalize(point * flat, dim=-1)
    if kind == SPHERE:
        return torch.where(met, t, torch.inf), normal
    met &= point[..., 1].abs() < half[..., 1]
    lid = (half[..., 1] - o[..., 1]) / torch.where(v[..., 1].abs() < 1e-9, 1e-9, v[..., 1])  # seen from above only
    on = o + lid[..., None] * v
    capped = (lid > 1e-3) & (v[..., 1] < 0) & ((on * on * flat).sum(-1) < half[..., 0].square())
    first = capped & (~met | (lid < t))
    up = torch.tensor([0.0, 1.0, 0.0], device=v.device)
    return torch.where(first, lid, torch.where(met, t, torch.inf)), torch.where(first[..., None], up, normal)
