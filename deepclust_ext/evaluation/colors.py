"""As many colors as there are clusters, told apart by hue first and by lightness where hues run out."""

import math

_HUES = 7  # that are told apart at one lightness
_CHROMA = 0.17
#: Lightness of the colors by theme, so that each stands out from the page.
LIGHTNESS = {"light": (0.61, 0.46, 0.65), "dark": (0.74, 0.86, 0.62)}


def palette(count: int, theme: str) -> list[str]:
    """Return so many colors as #rrggbb, evenly around the hues of OKLCH at one to three degrees of lightness.

    Neighbors in the list are far apart in hue. OKLCH is of Ottosson, https://bottosson.github.io/posts/oklab, 2020.

    Args:
        count: How many.
        theme: "light" or "dark", what the page is.
    """
    levels = LIGHTNESS[theme][: min(3, -(-count // _HUES))] or LIGHTNESS[theme][:1]
    hues = max(1, -(-count // len(levels)))
    stride = next(step for step in range(max(1, round(hues * 0.382)), hues + 1) if math.gcd(step, hues) == 1)
    colors = []
    for place in range(count):
        around, level = divmod(place, len(levels))
        turned = around * stride + level * (hues // len(levels))
        hue = 2 * math.pi * (0.07 + (turned % hues + level / len(levels)) / hues)
        colors.append(_hex(levels[level], hue))
    return colors


def _hex(lightness: float, hue: float) -> str:
    """Return a color with as much chroma as a screen can show."""
    chroma, rgb = _CHROMA, _linear_rgb(lightness, _CHROMA, hue)
    while not all(-1e-4 <= part <= 1 + 1e-4 for part in rgb):
        chroma -= 0.005
        rgb = _linear_rgb(lightness, chroma, hue)
    encoded = [12.92 * part if part <= 0.0031308 else 1.055 * part ** (1 / 2.4) - 0.055 for part in rgb]
    return "#" + "".join(f"{round(255 * min(max(part, 0), 1)):02x}" for part in encoded)


def _linear_rgb(lightness: float, chroma: float, hue: float) -> tuple[float, float, float]:
    a, b = chroma * math.cos(hue), chroma * math.sin(hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    middle = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return (
        4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * short,
    )
