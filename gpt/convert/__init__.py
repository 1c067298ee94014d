"""The Languini Kitchen's books and weights in; transformers' GPT-2 out and back."""
