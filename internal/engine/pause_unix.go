//go:build unix

package engine

import "syscall"

// Pause has the server, which must be one process, do nothing until Resume.
func (s *Server) Pause() { s.cmd.Process.Signal(syscall.SIGSTOP) }

// Resume has the server go on.
func (s *Server) Resume() { s.cmd.Process.Signal(syscall.SIGCONT) }
