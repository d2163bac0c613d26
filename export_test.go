package brokerauth

import "time"

// MoveWall makes s see its clocks as if the wall clock had just moved by d: forward while a computer slept, or set.
func (s *Session) MoveWall(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.current.Load(); p != nil {
		c := &published{token: p.token.Clone(), header: p.header, renew: p.renew, dead: p.dead}
		for _, at := range []*time.Time{&c.token.Issued, &c.token.Expiry, &c.token.LoggedInAt, &c.token.LoginBy} {
			*at = at.Add(-d)
		}
		c.renew.wall -= int64(d)
		c.dead.wall -= int64(d)
		s.current.Store(c)
	}
}

// Replan is what a Keeper does when it notices that.
func (k *Keeper) Replan() { k.replan(); k.nudge() }
