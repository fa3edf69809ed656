"""Text as LaTeX that pdflatex compiles without any package for fonts, encodings or symbols."""

import re
from itertools import pairwise

_ESCAPES = {
  "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
  "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "`": r"\textasciigrave{}",
  # In the default font these would be printed as other characters.
  "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''",
}  # fmt: skip
_SYMBOLS = {
  "×": r"$\times$", "±": r"$\pm$", "·": r"$\cdot$", "−": "$-$", "≤": r"$\leq$", "≥": r"$\geq$", "≠": r"$\neq$",
  "≈": r"$\approx$", "∞": r"$\infty$", "√": r"$\surd$", "→": r"$\rightarrow$", "←": r"$\leftarrow$", "°": r"$^\circ$",
  "²": "$^2$", "³": "$^3$", "½": "$1/2$", "′": "$'$", "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$",
  "δ": r"$\delta$", "Δ": r"$\Delta$", "ε": r"$\epsilon$", "η": r"$\eta$", "θ": r"$\theta$", "κ": r"$\kappa$",
  "λ": r"$\lambda$", "μ": r"$\mu$", "µ": r"$\mu$", "ν": r"$\nu$", "π": r"$\pi$", "ρ": r"$\rho$", "σ": r"$\sigma$",
  "Σ": r"$\Sigma$", "τ": r"$\tau$", "φ": r"$\phi$", "χ": r"$\chi$", "ψ": r"$\psi$", "ω": r"$\omega$",
  "Ω": r"$\Omega$", "–": "--", "—": "---", "…": r"\ldots{}", "“": "``", "”": "''", "‘": "`", "’": "'", "§": r"\S{}",
  "\N{NO-BREAK SPACE}": "~", "\N{NARROW NO-BREAK SPACE}": r"\,", "\N{THIN SPACE}": r"\,",
}  # fmt: skip
# Accented Latin letters compile as they are, except for these, which the default font lacks.
_NO_LETTERS = "×÷ÐÞðþĄąĐđĘęĦħĮįĸĿŀŉŊŋŦŧŲųſ"


def latex(text: str) -> str:
  """One line of text; characters that pdflatex lacks by default are shown by number, as `[U+4E2D]`."""
  # Two hyphens would become a dash; a bracket or a star at the start of a row would be read as an argument of `\\`.
  escaped = "".join("-{}" if pair == "--" else _character(pair[0]) for pair in map("".join, pairwise(f"{text} ")))
  return re.sub(r"^(?=\s*[\[*])", "{}", escaped)


def _character(letter: str) -> str:
  known = _ESCAPES.get(letter) or _SYMBOLS.get(letter)
  if known is not None:
    return known
  if " " <= letter <= "~" or ("À" <= letter <= "ž" and letter not in _NO_LETTERS):
    return letter
  return f"[U+{ord(letter):04X}]"
