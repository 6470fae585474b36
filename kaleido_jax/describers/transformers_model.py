"""A vision-language model of the transformers library, from a folder on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from kaleido_jax.endpoints import Question
from kaleido_jax.errors import InputError, UsageError, printable

T = TypeVar("T")


class TransformersModel:
    """An image-text-to-text model with its processor, asked greedily, so that the same question has the same answer."""

    def __init__(self, model: Any, processor: Any, *, attempts: int = 2, tokens: int = 512) -> None:
        """
        Args:
          attempts: questions in all before giving up; from the second on, the model is told what was wrong.
          tokens: the answer's longest length.
        """
        self.model, self.processor, self.attempts, self.tokens = model, processor, attempts, tokens

    @classmethod
    def load(cls, folder: str | Path) -> "TransformersModel":
        """From a folder, never from the network, and without code of the folder's.

        Raises:
          UsageError: torch or transformers is not installed. InputError: the folder holds no such model.
        """
        try:
            import torch  # noqa: F401
            from transformers import AutoModelForImageTextToText, AutoProcessor
        except ImportError as error:
            raise UsageError(
                f"The describer {printable(str(folder))} needs {error.name}: pip install 'kaleido_jax[vlm]'."
            ) from None
        try:
            processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            model = AutoModelForImageTextToText.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
            )
        except (OSError, ValueError, KeyError) as error:
            reason = printable(" ".join(str(error).split()), 200)
            raise InputError(f"{printable(str(folder))} holds no vision-language model ({reason}).") from error
        return cls(model.eval(), processor)

    def ask(self, question: Question, check: Callable[[str], T]) -> T:
        """What `check` makes of the answer. Raises InputError if no attempt gave one that it accepts."""
        messages = [{"role": "user", "content": [_part(part) for part in question]}]
        pictures = [Image.fromarray(part) for part in question if not isinstance(part, str)]
        answer = reason = ""
        for _ in range(self.attempts):
            answer = self._answer(messages, pictures)
            try:
                return check(answer)
            except InputError as error:
                reason = str(error)
                messages = [
                    messages[0],
                    {"role": "assistant", "content": [{"type": "text", "text": answer}]},
                    {"role": "user", "content": [{"type": "text", "text": f"That cannot be used. {reason} Again."}]},
                ]
        raise InputError(
            f"The describer gave no usable answer in {self.attempts} attempts (the last: {printable(answer, 60)!r}: "
            f"{reason.rstrip('.')})."
        )

    def _answer(self, messages: list[dict[str, Any]], pictures: list[Image.Image]) -> str:
        import torch

        text = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        given = self.processor(text=[text], images=pictures or None, return_tensors="pt").to(self.model.device)
        with torch.inference_mode():
            made = self.model.generate(**given, max_new_tokens=self.tokens, do_sample=False)
        new = made[:, given["input_ids"].shape[1] :]
        return self.processor.batch_decode(new, skip_special_tokens=True)[0].strip()


def _part(part: Any) -> dict[str, str]:
    return {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
