"""MATLAB's bicubic `imresize`, with which super-resolution makes its small pictures and its baselines.

    h(t) = 1.5 |t|^3 - 2.5 |t|^2 + 1          for |t| <= 1
           -0.5 |t|^3 + 2.5 |t|^2 - 4 |t| + 2 for 1 < |t| <= 2,    0 beyond          (Keys, 1981, a = -1/2)
    out[i] = sum_j w_ij x[j] / sum_j w_ij,    w_ij = h(min(1, scale) (j - u_i)),    u_i = (i + 1/2) / scale - 1/2
on rows, then on columns; pixels beyond a border are mirrored with the outermost one repeated (x[-1] = x[0]); the
result has ceil(scale H) x ceil(scale W) pixels. Reducing stretches the kernel, so that it averages: what others call
antialias.
"""

from vantage.ops.resize.dispatch import resize

__all__ = ["resize"]
