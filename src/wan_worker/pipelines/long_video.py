"""A plan with segments -> the frames of one video, as one stream.

Each segment starts from the last frame so far, uncropped and as decoded (not yet encoded by the
codec). Its own first frame repeats that frame and is dropped. Only one segment's latents are in
memory at a time, so that memory does not grow with the number of segments.

Promises: exactly the plan's frames. If a segment fails, the stream ends after the earlier segments,
which become a file, and ``failure`` says why. A cancel raises.
Not covered: which model makes which segment (planning.segments), the file (media.encode).
"""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from wan_worker import faults
from wan_worker.errors import Canceled, DeadlineExceeded, WorkerError
from wan_worker.inputs.references import References
from wan_worker.pipelines import generate
from wan_worker.planning.plan import Plan
from wan_worker.timing.progress import Control, Part

if TYPE_CHECKING:
    import torch

    from wan_worker.pipelines.generate import Frames

FINISH_SECONDS: Final = 30.0
"""Time after the job's deadline in which to close and check the file of the finished segments."""


class LongVideo:
    """The frames of one output of a plan with segments.

    Args:
        planned: a plan with one output.
        prompt_embeds, negative_prompt_embeds: as ``generate.denoise`` takes them.
        pictures: at the plan's generated size; the last one is the end of the last segment.
        equipped: gives a tuple; its first item is a segment's pipeline, loaded, with its LoRAs on.
    """

    def __init__(
        self,
        planned: Plan,
        prompt_embeds: "torch.Tensor",
        negative_prompt_embeds: "torch.Tensor | None",
        pictures: References,
        equipped: Callable[[Plan], AbstractContextManager[tuple[Any, ...]]],
        control: Control,
    ) -> None:
        self._planned = planned
        self._embeds = prompt_embeds, negative_prompt_embeds
        self._first, self._last = pictures.first, pictures.last
        self._equipped = equipped
        self._control = control
        self.failure: WorkerError | None = None
        """Why the stream ended early, if it did."""

    def frames(self) -> Generator["Frames", None, None]:
        """uint8 [n, height, width, 3], cropped to the plan's size, ``num_frames`` in all.

        Raises:
            Canceled: at the next step.
            Exception: the failure of the first segment.
        """
        control, outer = self._control, self._control.parts
        count = len(self._planned.segments)
        for index, segment in enumerate(self._planned.segments):
            control.parts = (*outer, Part("segment", index + 1, index + 1, count))
            try:
                last = self._last if index == count - 1 else None
                pictures = References(self._first, last)
                yield from self._segment(segment, pictures, repeats_first=index > 0)
            except Canceled:
                raise
            except Exception as problem:
                if index == 0:
                    raise
                if isinstance(problem, DeadlineExceeded):
                    control.extend(FINISH_SECONDS)
                self.failure = (
                    problem if isinstance(problem, WorkerError) else faults.classify(problem)
                )
                return
        control.parts = outer

    def _segment(
        self, segment: Plan, pictures: References, *, repeats_first: bool
    ) -> Generator["Frames", None, None]:
        from PIL import Image

        control = self._control
        # Uncropped, because the next segment starts from the whole picture.
        segment = replace(segment, size=self._planned.generated_size)
        with self._equipped(segment) as (pipeline, *_):
            control.enter("denoise")
            latents = generate.denoise(pipeline, segment, *self._embeds, pictures, control)
            control.enter("decode_encode")
            with closing(generate.frames(pipeline.vae, latents, segment, control)) as chunks:
                for chunk in chunks:
                    self._first = Image.fromarray(chunk[-1])
                    fresh = chunk[1:] if repeats_first else chunk
                    repeats_first = False
                    if len(fresh):
                        yield generate.cropped(fresh, self._planned)
