"""The index of the reference: every page of the directory with what it is about."""

from __future__ import annotations

from pages.common import NOTICE

ABOUT = {
    "cli": ("ottoctl", "Every command, its options and examples."),
    "configuration": ("Configuration", "The daemon's file, agent files, environment variables, providers."),
    "events": ("Events", "Every kind of event with its fields."),
    "exit-statuses": ("Exit statuses", "What a command's status says."),
    "metrics": ("Metrics", "Every metric that Prometheus can read, and the gateway that serves them."),
    "presets": ("Presets", "What is decided about a tool call that no rule of yours speaks about."),
    "red-team": ("The red team", "Attacks that are tried against Otto, and the layer that blocks each."),
    "routing": ("The router", "How an agent is found for a task, and how often it is the right one."),
    "scripted-provider": ("The scripted provider", "Models that read their lines from a file, faults included."),
    "session-states": ("Session states", "What a session can be, and what may follow what."),
    "tools": ("Tools", "What an agent can be given, as a model sees it."),
    "workflow-fields": ("Workflow files", "Every key of a workflow, its short forms, and the kinds of artifacts."),
    "turns": ("Turns", "The machine between an input and its answer."),
}


def index_page() -> str:
    """All reference pages."""
    rows = "".join(f"| [{title}]({name}.md) | {about} |\n" for name, (title, about) in ABOUT.items())
    return f"""{NOTICE}
# Reference

All but one of these pages are written from the code and checked against it. That of the scripted provider is written
by hand; its examples are checked.

| page | what is in it |
|---|---|
{rows}"""
