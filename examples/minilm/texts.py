"""Texts of the example: sentences to embed, and other English to fit the split on. No sentence is in both."""

from __future__ import annotations

import pydoc_data.topics
import re

SENTENCES = (
    "The ferry leaves the island at seven and will not wait for anyone.",
    "Our last boat back to the mainland departs at seven sharp.",
    "She planted garlic in October and forgot about it until June.",
    "Garlic goes into the ground in autumn and comes out in early summer.",
    "A violin string tuned too high snaps without warning.",
    "The orchestra rehearsed the slow movement four times before lunch.",
    "Rain has fallen on the valley for eleven days.",
    "It has been raining in the valley for almost two weeks.",
    "The court ruled that the contract was void from the beginning.",
    "A judge declared the agreement invalid.",
    "Water boils at a lower temperature on a mountain than by the sea.",
    "At high altitude, you need less heat to bring water to the boil.",
    "He repaired the bicycle with a paper clip and some patience.",
    "The goalkeeper saved two penalties and let in an easy shot.",
    "Their striker missed from three metres and blamed the grass.",
    "Neutrinos pass through the whole Earth and hardly ever touch anything.",
    "Most particles from the sun that cross our planet leave no trace.",
    "The museum keeps its oldest maps in a room without windows.",
    "Old maps are stored in the dark so that the ink does not fade.",
    "Please send the invoice again; the attachment was empty.",
    "There was no file in your last message, could you resend the bill?",
    "The train was cancelled, so we walked along the canal instead.",
    "Bread needs flour, water, salt, and more time than people think.",
    "Good dough rises slowly in a cool kitchen overnight.",
    "A new bridge will connect both halves of the town by spring.",
    "The committee has postponed its decision on the bridge again.",
    "Interest rates rose by a quarter of a point on Thursday.",
    "The central bank made borrowing slightly more expensive this week.",
    "Elephants can recognise themselves in a mirror.",
    "Crows remember the faces of people who have annoyed them.",
    "The vaccine must be kept at minus seventy degrees.",
    "Her fever went down on the third day, and she asked for soup.",
    "The patient felt better after three days and wanted to eat.",
    "In winter the lake freezes so hard that lorries drive across it.",
    "Trucks use the frozen lake as a road in January.",
    "I have never understood why the meeting could not be an email.",
    "The password must contain a letter, a digit, and regret.",
    "Divide the number by its largest prime factor and repeat.",
    "A prime number has no divisors except one and itself.",
    "The lighthouse keeper wrote one line in the log every night.",
    "Grandmother told the same story about the wolf, always with a different ending.",
    "The dog waits at the door long before the car turns into the street.",
    "Somehow our cat knows when the neighbour opens a tin.",
    "Turn left after the petrol station, then straight on until the church.",
    "Volcanic ash grounded every aircraft in the north for a week.",
    "Flights were stopped for days because of the eruption.",
    "The translation is accurate, but the joke is gone.",
    "He apologised twice, once for the delay and once for the excuse.",
)


def fitting_texts(count: int = 250) -> list[str]:
    """`count` English sentences of 6 to 20 words that every Python has: from the help texts of `pydoc`.

    They are about as long as SENTENCES, since position and sentence length show in the activations. They are taken
    evenly from all help texts.
    """
    prose = " ".join(pydoc_data.topics.topics.values())
    prose = re.sub(r"[^\w\s.,;:'()-]+|[*=_-]{2,}", " ", prose)
    pieces = re.split(r"(?<=[.:;])\s+", " ".join(prose.split()))
    whole = [piece for piece in pieces if piece[:1].isupper() and piece.endswith(".")]
    fitting = [sentence for sentence in whole if 6 <= len(sentence.split()) <= 20]
    return fitting[:: max(1, len(fitting) // count)][:count]
