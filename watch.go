package brokerauth

import (
	"context"
	"errors"
	"iter"
	"time"
)

// Watch yields the current token and then each newer one, whether this or another process got it. It serves what holds
// a token for long: a websocket that sends it in its first frame, a child process that was handed one.
//
//	for token, err := range session.Watch(ctx) {
//		if err != nil {
//			log.Print(err) // Watch goes on: a token follows once there is one
//			continue
//		}
//		stream.Login(token.AccessToken)
//	}
//
// Watch renews as Token does where nobody else has, and only while the loop's body is not at work: it has no goroutine.
// A body that is slow misses tokens and gets the newest. An error is yielded once, until another follows or a token;
// none is while the last token is valid. Watch ends quietly when ctx does, and with an error matching fs.ErrClosed when
// the Session is closed.
//
// What this process gets it sees at once. For what others get it loads the record every second, or so much less often
// that loading takes a thousandth of its time, and every minute at least.
func (s *Session) Watch(ctx context.Context) iter.Seq2[*Token, error] {
	return func(yield func(*Token, error) bool) {
		key, err := s.key()
		if err != nil {
			yield(nil, err)
			return
		}
		var last *Token
		trouble := "" // what was yielded last, if that was an error
		every := time.Second
		for ctx.Err() == nil {
			changed := s.change() // first, so that no token is missed
			t, err := s.Token(ctx)
			switch {
			case ctx.Err() != nil:
				return
			case errors.Is(err, errClosed):
				yield(nil, err)
				return
			case err != nil:
				if now := lasting(err); now != trouble {
					trouble = now
					if !yield(nil, err) {
						return
					}
				}
			case last == nil || trouble != "" || t.AccessToken != last.AccessToken:
				last, trouble = t, ""
				if !yield(t, nil) {
					return
				}
			}
			for waiting := true; waiting; {
				timer := time.NewTimer(every)
				select {
				case <-changed:
					waiting = false
				case <-timer.C:
					began := time.Now()
					bounded, cancel := context.WithTimeout(ctx, storeTimeout)
					_, _ = s.look(bounded, key) // Token tells what is wrong with the store when it matters
					cancel()
					p := s.current.Load()
					waiting = err == nil && p != nil && !p.renew.passed(time.Now())
					every = min(max(time.Second, 1000*time.Since(began)), time.Minute)
				case <-ctx.Done():
					waiting = false
				}
				timer.Stop()
			}
		}
	}
}

// lasting is what err says but for the time that passes.
func lasting(err error) string {
	if e := (*Error)(nil); errors.As(err, &e) {
		c := *e
		c.RetryAfter = 0
		return c.Error()
	}
	return err.Error()
}

// change returns a channel that is closed when there is another token than now, or none any more.
func (s *Session) change() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	return s.changed
}

// tellWatchers says that there is another token, or none any more. s.mu is held.
func (s *Session) tellWatchers() {
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// look publishes the stored token where that is valid and another than the one in hand, as what others got is. It asks
// no broker, and returns the record.
func (s *Session) look(ctx context.Context, key Key) (*record, error) {
	s.mu.Lock()
	held, epoch := s.current.Load(), s.epoch
	s.mu.Unlock()
	began := time.Now()
	_, rec, err := s.load(ctx, key)
	if err != nil || !rec.hasToken() || held != nil && held.token.AccessToken == rec.token.AccessToken {
		return rec, err
	}
	info := s.Provider.Info()
	p := newPublished(rec.token, info, time.Now())
	if v := rec.verdictFor(info.Settings); p.dead.passed(time.Now()) || v != nil && v.final() && v.AccessToo {
		return rec, nil
	}
	s.mu.Lock()
	// What came into hand meanwhile, or could not be saved, is newer than what was loaded, and so is a logout.
	adopted := !s.closed && s.epoch == epoch && s.unsaved == nil && s.current.CompareAndSwap(held, p)
	if adopted {
		s.tellWatchers()
	}
	s.mu.Unlock()
	if adopted {
		s.emit(Event{Kind: "adopted", Key: key, Token: fingerprint(rec.token.AccessToken), Took: time.Since(began)})
	}
	return rec, nil
}
