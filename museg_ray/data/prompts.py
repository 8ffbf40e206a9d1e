"""The user message of a query."""

from museg_ray.errors import ConfigError

PLACEHOLDER = "{question}"


def render_prompt(template: str, question: str) -> str:
    """The template with `{question}` replaced, whatever other braces it or the question contain.

    Raises:
        ConfigError: the template has no `{question}`, so every query would get the same prompt.
    """
    if PLACEHOLDER not in template:
        raise ConfigError(f"The prompt template does not contain {PLACEHOLDER}: {template!r}")
    return template.replace(PLACEHOLDER, question)
