"""What Otto says about itself: its log; metrics and traces get their rooms here."""
