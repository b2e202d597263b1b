"""What the users ask: sentences from two to some eighty words, as real callers mix them."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

# None reaches 128 tokens, the shipped recipes' maximum.
SENTENCES = (
    "Hello there.",
    "Call Amara Okafor.",
    "Snow fell on Sapporo overnight.",
    "Who won the match in Porto?",
    "Priya Raman has joined Halden Robotics.",
    "The ferry from Tallinn to Helsinki leaves at nine.",
    "Nothing in this sentence is a name, and nothing should be found.",
    "Shares of Larkfield Energy rose four percent in Frankfurt on Tuesday.",
    "Professor Ingrid Solheim teaches Norwegian history at the University of Bergen.",
    "The Chilean striker Mateo Rojas scored twice before half-time against Peru.",
    "A spokesman for the World Health Organization declined to comment in Geneva.",
    "Can you tell me whether the museum in Lyon is open on public holidays?",
    "Tomas Novak flew from Prague to Nairobi last week to meet engineers of the Kenyan railway company.",
    "After eleven years as head of Brightwater Shipping, Helen Marsh will hand over to Daniel Oyelaran.",
    "The court in Milan ordered the Italian retailer to pay back the deposits of two thousand customers.",
    "Heavy rain closed the mountain road between Innsbruck and Bolzano, and drivers were told to use the "
    "Brenner motorway until Friday evening.",
    "In a letter to The Meridian Post, the Danish author Signe Holm thanked the nurses of the hospital in "
    "Aarhus who had looked after her brother during the winter.",
    "The Canadian space agency said on Thursday that the satellite had reached its orbit, that all "
    "instruments answered, and that the first pictures of the Arctic Ocean could be expected before the "
    "end of the month.",
    "Wei Zhang, who founded Blue Lantern Films in Singapore together with her cousin, told reporters in "
    "Cannes that the next picture would be shot in Vietnam and Laos, with a crew of forty, and that the "
    "Australian actor Liam Doyle had agreed to play the smuggler whom half the village protects.",
    "When the storm had passed, the mayor of Galveston walked through the streets near the harbour with "
    "Colonel Ruth Delgado of the National Guard, counted the roofs that were gone, spoke with the owners "
    "of the bakery and the Portuguese fish market, and promised that the city, the state of Texas and the "
    "Red Cross would share the cost of the tents, the water and the doctors.",
)


def endless_sentences(seed: int, user: int) -> Iterator[str]:
    """Draw from :data:`SENTENCES` for ever; the same sequence for the same seed and user."""
    random = Random(f"{seed}/{user}")
    while True:
        yield random.choice(SENTENCES)
