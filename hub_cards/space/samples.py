"""Sample sentences by topic."""

EXAMPLES = {
    "Riding, cooking, money": [
        "A jockey riding a horse.",
        "Someone rides a horse along the beach.",
        "Two girls are feeding a pony.",
        "A chef is chopping onions.",
        "The woman is frying fish in a pan.",
        "He bakes bread every morning.",
        "Interest rates go up again.",
        "The bank lends less money than last year.",
        "Shares fell after the announcement.",
    ],
    "Asked in other words": [
        "How can I extend my membership of the library?",
        "I want to renew my library membership.",
        "Are children allowed in the library?",
        "May kids come into the library?",
        "The copy machine has run out of ink.",
        "There is no ink in the copier.",
        "Somebody left a bag in the reading room.",
        "A bag was forgotten in the reading room.",
    ],
    "Same words, other meaning": [
        "The bank of the river was muddy.",
        "The bank closed her account.",
        "The dog bites the man.",
        "The man bites the dog.",
        "He did not like the film at all.",
        "He liked the film a lot.",
        "The bat flew out of the cave.",
        "He swung the bat and missed.",
    ],
}
