package engine

// Pause fails the test: a process cannot be told so here.
func (s *Server) Pause() { s.t.Fatal("no server can be paused on Windows") }

// Resume ends what Pause has begun.
func (s *Server) Resume() {}
