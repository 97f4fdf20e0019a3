"""Pure renderers: values in, text out. No I/O, no clock, no terminal; width, colour and time are arguments."""
