"""Operations of the hot loop, each written for speed and small memory."""
