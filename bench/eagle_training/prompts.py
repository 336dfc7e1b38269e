"""What a head is trained to guess answers to: prompts of many kinds, put together at random.

Some answers become prompts in turn: articles are summarised, edited and turned into JSON later, and questions that the
model made up are asked. The first documents are given.
"""

import json
import random
from dataclasses import dataclass, field
from typing import Literal

from ...wire.sampling import Guidance
from ..speculation_tasks import NAME, NUMBER, object_schema

Use = Literal["document", "question"]
"""What an answer is good for."""

TOPICS = (
    "volcanoes", "honey bees", "steam engines", "the Roman Empire", "sourdough bread", "chess openings", "black holes",
    "coral reefs", "public libraries", "electric cars", "the printing press", "tea ceremonies", "glaciers", "jazz",
    "photosynthesis", "the stock market", "origami", "migratory birds", "vaccines", "lighthouses", "compilers",
    "medieval castles", "the Silk Road", "wind power", "dental care", "earthquakes", "watercolour painting", "wolves",
    "marathon training", "the water cycle", "railways", "antibiotics", "opera", "satellites", "the Amazon rainforest",
    "cheese making", "bicycles", "the human heart", "time zones", "submarines", "poetry", "databases", "desert plants",
    "the Olympic Games", "comets", "pottery", "personal budgets", "encryption", "whales", "dinosaurs", "bridges",
    "meditation", "the periodic table", "weather forecasts", "violins", "computer networks", "urban gardens", "salt",
    "nuclear energy", "sleep", "maps", "robots", "the French Revolution", "camera lenses", "soil", "kites", "elections",
)  # fmt: skip
TASKS = (
    "clean a coffee machine", "train a puppy", "write a cover letter", "grow tomatoes", "learn Spanish",
    "fix a flat tyre",
    "prepare for an interview", "save money on groceries", "cook rice", "sleep better", "start running",
    "tie a bow tie",
    "remove a wine stain", "paint a room", "plan a trip to Japan", "back up a computer", "make friends in a new city",
    "repot an orchid", "sharpen a knife", "write a short speech", "study for an exam", "sort a list in Python",
    "sew a button",
    "organise a small kitchen", "teach a child to swim", "choose a mattress", "brew green tea", "stop a nosebleed",
    "read a balance sheet", "take better photographs", "keep a houseplant healthy", "lower a heating bill",
)  # fmt: skip
FACTS = (
    "the sea salty", "the sky blue", "the moon bright", "glass transparent", "ice slippery", "gold so valuable",
    "the desert cold at night", "bread dough sticky", "a rainbow curved", "the Dead Sea so salty", "copper roofs green",
    "exercise good for the heart", "the Mona Lisa famous", "sugar sweet", "thunder heard after lightning",
    "a magnet strong",
)  # fmt: skip
AUDIENCES = ("a child", "a beginner", "a student", "an engineer", "my grandmother", "a tourist", "a business owner")
FORMS = (
    "a short poem",
    "a story",
    "an email",
    "a letter",
    "a dialogue",
    "a speech",
    "a diary entry",
    "a product review",
)
ITEMS = (
    "rivers", "mountains", "novels", "films", "fruits", "programming languages", "planets", "painters", "cities",
    "islands",
    "vegetables", "composers", "inventions", "birds", "sports", "museums", "lakes", "board games", "dishes",
    "scientists",
)  # fmt: skip
WORDS = ("name", "title", "author", "place", "kind", "language", "colour", "origin", "summary", "owner", "field")
COUNTS = ("year", "length", "height", "weight", "price", "age", "rank", "count", "area", "score", "depth")
CHANGES = (
    "in capital letters", "but in the past tense", "but replace every number by 7", "but leave out every adjective",
    "but change every name to Alice", "as a numbered list", "in simpler words", "but in the first person",
    "word for word",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Prompt:
    text: str
    guidance: Guidance | None = None
    """What the answer must match."""
    use: Use | None = None


@dataclass(slots=True)
class PromptMaker:
    documents: list[str]
    """Not empty."""
    rng: random.Random
    questions: list[str] = field(default_factory=list)

    def make(self) -> Prompt:
        kind = self.rng.choice((self._chat, self._article, self._question, self._summary, self._edit, self._json))
        return kind()

    def take(self, prompt: Prompt, answer: str) -> None:
        """An answer, for later prompts."""
        if prompt.use == "document":
            self.documents.append(answer)
        elif prompt.use == "question":
            self.questions.append(answer)

    def _chat(self) -> Prompt:
        if self.questions and self.rng.random() < 0.5:
            return Prompt(self.rng.choice(self.questions))
        pick = self.rng.choice
        return Prompt(
            pick(
                (
                    f"How do I {pick(TASKS)}?",
                    f"What do I need to {pick(TASKS)}?",
                    f"Why is {pick(FACTS)}?",
                    f"Explain {pick(TOPICS)} to {pick(AUDIENCES)}.",
                    f"Write {pick(FORMS)} about {pick(TOPICS)}.",
                    f"Write {pick(FORMS)} about {pick(TOPICS)} and {pick(TOPICS)}.",
                    f"Give me {pick((3, 4, 5, 7))} ideas for {pick(FORMS)} about {pick(TOPICS)}.",
                    f"What is the difference between {pick(TOPICS)} and {pick(TOPICS)}?",
                    f"Name {pick((3, 5, 10))} {pick(ITEMS)} and say what is special about each.",
                )
            )
        )

    def _article(self) -> Prompt:
        where = self.rng.choice(("a newspaper", "an encyclopedia", "a travel guide", "a school book", "a magazine"))
        return Prompt(
            f"Write one paragraph about {self.rng.choice(TOPICS)} for {where}, with numbers and years.", use="document"
        )

    def _question(self) -> Prompt:
        about = f"{self.rng.choice(TOPICS)} that {self.rng.choice(AUDIENCES)} could ask an assistant"
        return Prompt(f"Write one question about {about}. Answer with the question alone.", use="question")

    def _summary(self) -> Prompt:
        how = self.rng.choice(
            ("Summarise in one sentence:", "Summarise in three sentences:", "What is this text about?", "Key points:")
        )
        return Prompt(self._with_document(how))

    def _edit(self) -> Prompt:
        how = self.rng.choice(
            (f"Write this text again, {self.rng.choice(CHANGES)}:", "Correct the grammar:", "Correct all mistakes in:")
        )
        return Prompt(self._with_document(how))

    def _json(self) -> Prompt:
        """Half of them say what the fields are in the prompt alone, half with a schema, too."""
        words, counts = self.rng.sample(WORDS, 2), self.rng.sample(COUNTS, 2)
        names, schema = [*words, *counts], object_schema(**dict.fromkeys(words, NAME), **dict.fromkeys(counts, NUMBER))
        fields = f"{', '.join(names[:-1])} and {names[-1]}"
        if self.rng.random() < 0.5:
            count = self.rng.choice((2, 3, 4))
            text = f"List {count} {self.rng.choice(ITEMS)} as a JSON array of objects with the fields {fields}."
            schema = {"type": "array", "items": schema, "minItems": count, "maxItems": count}
        else:
            text = self._with_document(f"Make a JSON object with the fields {fields} of this text:")
        return Prompt(text, Guidance("json_schema", json.dumps(schema)) if self.rng.random() < 0.5 else None)

    def _with_document(self, how: str) -> str:
        document = self.rng.choice(self.documents)
        return f"{how} {document}" if self.rng.random() < 0.7 else f"{document}\n\n{how.removesuffix(':')}"
