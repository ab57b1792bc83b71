"""How a generator is judged: Fréchet distance and agreement of its views."""
