"""The record of who got what, chained so that no line can go missing unseen."""
