"""The page on which a picture is segmented: its addresses, and what each of them answers.

One page of plain HTML and JavaScript over Starlette, and not Gradio: Gradio answers no hovering, takes a request and a
redraw of the whole component for every move, loads fonts and a script from foreign hosts, reports its use unless told
not to, and installs pandas and some thirty more packages.
"""

import gzip
import io
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
import msgspec
import numpy as np
from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from vocabseg.runtime.bundle.folder import Bundle
from vocabseg.runtime.errors import ConfigurationError, ImageError, VocabsegError, VocabularyError
from vocabseg.runtime.images import load_image
from vocabseg.runtime.text.class_names import names_in_text
from vocabseg.runtime.text.vocabulary import Vocabulary
from vocabseg.web import drawing
from vocabseg.web.guard import Guard
from vocabseg.web.models import Models
from vocabseg.web.shelf import Gone, Kept, Shelf

T = TypeVar("T")

FOLDER = Path(__file__).parent
PAGE = {"/": "page.html", "/page.css": "page.css", "/page.js": "page.js", "/stage.js": "stage.js"}
# Of an upload: bytes, and seconds until all of it is there.
UPLOAD_BYTES, UPLOAD_SECONDS = 100_000_000, 120
# Larger pictures are made smaller, to this many pixels on the longer side: what is kept and drawn stays small.
LONGEST = 2048
# Of a question: bytes of the request, and class names.
QUESTION_BYTES, NAMES = 100_000, 1000
MASKS = 6  # that are listed of a pixel


@dataclass(frozen=True)
class Example:
    """A picture (H, W, 3) uint8 RGB to try, and class names for it."""

    name: str
    image: np.ndarray
    classes: str


class Question(msgspec.Struct, forbid_unknown_fields=True):
    """Which picture, by which model, for which class names, as a text; and whether there is a class "other"."""

    picture: str
    model: str
    precision: str
    names: str
    other: bool = False


def vocabulary_of(names: str, other: bool) -> Vocabulary:
    """The vocabulary of what a visitor wrote, who may name no file of this machine; raises VocabularyError."""
    text = names.strip().strip(",").strip()
    if text[:1] in ("@", "[", "{"):
        raise VocabularyError("the page reads no files and no JSON: write class names, separated by commas")
    listed = names_in_text(text) if text else []
    if len(listed) > NAMES:
        raise VocabularyError(f"there are {len(listed)} class names, more than {NAMES}: leave some out")
    return Vocabulary(listed, other=other)


class Site:
    """The page's answers. The networks run for one question at a time."""

    def __init__(
        self,
        models: Models,
        examples: list[Example],
        remark: Callable[[Bundle, Vocabulary], str] = lambda bundle, vocabulary: "",
        shelf: Shelf | None = None,
    ):
        """`remark` says what a visitor should know of a model asked for these names, or ""."""
        self.models, self.examples, self.remark = models, examples, remark
        self.shelf = Shelf() if shelf is None else shelf
        self._networks = anyio.CapacityLimiter(1)
        self._drawing = anyio.CapacityLimiter(2)
        self._uploads = anyio.CapacityLimiter(4)

    def application(self, names: Collection[str] = ()) -> Starlette:
        """The ASGI application; `names` are those by which it may be reached beside localhost and addresses."""
        routes = [
            *(Route(path, partial(_file, FOLDER / file)) for path, file in PAGE.items()),
            Route("/api/start", self.start),
            Route("/api/examples/{number:int}", self.example),
            Route("/api/pictures", self.upload, methods=["POST"]),
            Route("/api/answers", self.ask, methods=["POST"]),
            Route("/api/answers/{answer}/view", self.view),
            Route("/api/answers/{answer}/hovered", self.hovered),
            Route("/api/answers/{answer}/pixel", self.pixel),
            Route("/api/answers/{answer}/mask/{mask:int}", self.mask),
            Route("/api/answers/{answer}/file/{file}", self.file),
            Route("/api/disagreement", self.disagreement),
        ]
        told: Any = {VocabsegError: _told, ClientDisconnect: _left, Exception: _fault}
        return Starlette(routes=routes, middleware=[Middleware(Guard, names=names)], exception_handlers=told)

    async def start(self, request: Request) -> Response:
        examples = [
            {"name": example.name, "classes": example.classes, "address": f"api/examples/{number}"}
            for number, example in enumerate(self.examples)
        ]
        return JSONResponse({"models": self.models.listed(), "examples": examples, "upload_bytes": UPLOAD_BYTES})

    async def example(self, request: Request) -> Response:
        image = self._example(request.path_params["number"]).image
        body = await self._in_turn(self._drawing, lambda: drawing.encoded(image, "PNG"))
        return Response(body, media_type="image/png")

    def _example(self, number: int) -> Example:
        if not 0 <= number < len(self.examples):
            raise ConfigurationError(f"there is no example {number}: choose another")
        return self.examples[number]

    async def upload(self, request: Request) -> Response:
        """The body is an image file; or with ?example=N there is none."""
        asked = request.query_params
        page, name, number = asked.get("page", "")[:64], asked.get("name", "picture")[:200], asked.get("example")
        if number is not None:
            example = self._example(_whole(number))
            kept = Kept(example.name, example.image, page)
        else:
            async with self._uploads:
                try:
                    with anyio.fail_after(UPLOAD_SECONDS):
                        body = await _body(request, UPLOAD_BYTES, "the picture")
                except TimeoutError:
                    raise ImageError(f"the picture took over {UPLOAD_SECONDS} s: give a smaller one") from None
                image = await self._in_turn(self._drawing, lambda: _read(body, name))
            kept = Kept(name, image, page)
        height, width = kept.image.shape[:2]
        return JSONResponse({"picture": self.shelf.add(kept), "width": width, "height": height})

    async def ask(self, request: Request) -> Response:
        try:
            question = msgspec.json.decode(await _body(request, QUESTION_BYTES, "the question"), type=Question)
        except msgspec.MsgspecError as error:
            raise ConfigurationError(f"the question cannot be read: {error}") from None
        return JSONResponse(await self._in_turn(self._networks, lambda: self._answer(question)))

    def _answer(self, question: Question) -> dict[str, Any]:
        vocabulary = vocabulary_of(question.names, question.other)
        kept = self.shelf.picture(question.picture)
        model = (question.model, question.precision)
        began = time.perf_counter()
        try:
            segmenter = self.models.segmenter(*model)
        finally:
            if self.shelf.forget_other_models(self.models.open_keys()):
                drawing.forget()
        opened = time.perf_counter()
        regions = kept.regions.get(model)
        reused = regions is not None
        if regions is None:
            regions = segmenter.propose(kept.image)
            found = int(regions.valid.sum())  # a GPU is waited for
            proposed = time.perf_counter()
            self.shelf.add_regions(kept, model, regions)
        else:
            found, proposed = int(regions.valid.sum()), opened
        before = time.perf_counter()
        result = regions.classify(vocabulary)
        named = time.perf_counter()
        return {
            "answer": self.shelf.add_answer(question.picture, kept, model, result),
            "engine": segmenter.choice.key,
            "regions": found,
            "reused": reused,
            "opening_ms": 1000 * (opened - began),
            "regions_ms": 1000 * (proposed - opened),
            "names_ms": 1000 * (named - before),
            "classes": result.classes,
            "colours": [f"#{bytes(each).hex()}" for each in result.categories.palette(len(result.classes))],
            "remark": self.remark(segmenter.bundle, vocabulary),
        }

    async def view(self, request: Request) -> Response:
        _, result = self.shelf.answer(request.path_params["answer"])
        kind, min_score, opacity = _wanted(request)

        def draw() -> dict[str, Any]:
            drawn = drawing.view(result, kind, min_score)
            assert result.image is not None
            return {"picture": drawing.data_url(drawn.picture(result.image, opacity)), "segments": drawn.segments}

        return JSONResponse(await self._in_turn(self._drawing, draw))

    async def hovered(self, request: Request) -> Response:
        _, result = self.shelf.answer(request.path_params["answer"])
        body = await self._in_turn(self._drawing, lambda: gzip.compress(drawing.hovered(result), 1))
        return Response(body, headers={"Content-Encoding": "gzip"}, media_type="application/octet-stream")

    async def pixel(self, request: Request) -> Response:
        _, result = self.shelf.answer(request.path_params["answer"])
        x, y = (_whole(request.query_params.get(side, "")) for side in ("x", "y"))
        return JSONResponse(await self._in_turn(self._drawing, lambda: result.explain(x, y).to_json(MASKS)))

    async def mask(self, request: Request) -> Response:
        _, result = self.shelf.answer(request.path_params["answer"])
        number = request.path_params["mask"]
        body = await self._in_turn(self._drawing, lambda: drawing.mask_shade(result, number))
        return Response(body, media_type="image/png")

    async def file(self, request: Request) -> Response:
        kept, result = self.shelf.answer(request.path_params["answer"])
        ending = request.path_params["file"]
        if ending not in drawing.FILES:
            raise ConfigurationError(f"there is no file {ending[:40]!r}: use one of {', '.join(drawing.FILES)}")
        media_type, write = drawing.FILES[ending]
        asked = _wanted(request)
        body = await self._in_turn(self._drawing, lambda: write(result, *asked, kept.name))
        return Response(body, media_type=media_type)

    async def disagreement(self, request: Request) -> Response:
        one, other = (self.shelf.answer(request.query_params.get(each, ""))[1] for each in ("one", "other"))

        def draw() -> dict[str, Any]:
            picture, share = drawing.disagreement(one, other)
            return {"picture": drawing.data_url(picture), "share": share}

        return JSONResponse(await self._in_turn(self._drawing, draw))

    async def _in_turn(self, turns: anyio.CapacityLimiter, work: Callable[[], T]) -> T:
        return await run_sync(work, limiter=turns)


def _wanted(request: Request) -> tuple[str, float, float]:
    """The view, the least score and the opacity that are asked for; raises ConfigurationError."""
    asked: Mapping[str, str] = request.query_params
    numbers = []
    for name, usual in (("min_score", "0"), ("opacity", "0.6")):
        try:
            number = float(asked.get(name, usual))
        except ValueError:
            number = -1.0
        if not 0 <= number <= 1:
            raise ConfigurationError(f"{name} is {asked[name][:20]!r}: give a number from 0 to 1")
        numbers.append(number)
    return asked.get("view", drawing.VIEWS[0]), numbers[0], numbers[1]


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise ConfigurationError(f"{text[:20]!r} is no whole number from 0: give one")
    return int(text)


async def _body(request: Request, most: int, what: str) -> bytes:
    """Raises ImageError for more than `most` bytes, before they are read if they are announced."""
    parts, total = [], 0
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > most:
        raise _too_large(what, most)
    async for part in request.stream():
        total += len(part)
        if total > most:
            raise _too_large(what, most)
        parts.append(part)
    return b"".join(parts)


def _too_large(what: str, most: int) -> ImageError:
    return ImageError(f"{what} has more than {most / 10**6:g} MB: make it smaller")


def _read(body: bytes, name: str) -> np.ndarray:
    from PIL import Image

    file = io.BytesIO(body)
    file.name = name  # by which errors call it
    image = load_image(file)
    if max(image.shape[:2]) <= LONGEST:
        return image
    picture = Image.fromarray(image)
    picture.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    return np.array(picture)


async def _file(path: Path, request: Request) -> Response:
    return FileResponse(path)


async def _told(request: Request, error: Exception) -> Response:
    line = " ".join(str(error).split())
    return JSONResponse({"error": line}, 410 if isinstance(error, Gone) else 400)


async def _left(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # nobody is there to read it


async def _fault(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"a fault in vocabseg ({type(error).__name__}); the terminal says more"}, 500)
