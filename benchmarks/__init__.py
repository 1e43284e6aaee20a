"""What multichat costs, beside what people would pick instead."""
