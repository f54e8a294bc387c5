"""Grades answers in words and symbols: is this completion right about that problem?"""
