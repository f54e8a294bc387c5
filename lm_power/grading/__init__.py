"""Reads answers: is this completion right about a mathematical problem, and which program does it write?"""
