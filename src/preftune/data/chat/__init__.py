"""Turns of conversations, and how chat templates render them.

tool calls, marks that end a turn, and a limit on the time that one rendering may take.

    end_marks       end-of-turn marks typed into a text
    messages        turns: checked, read from transcripts, split where two conversations part
    template_watch  limits on time and memory of one rendering
    tool_calls      tool calls in any form -> the form of chat templates
    unwritten       parts of a conversation that a template leaves out
"""

__all__ = ["end_marks", "messages", "tool_calls", "unwritten"]
