package brokerauth

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"sync"
	"time"
)

// Keeper renews any number of Sessions in the background, each before its token needs it, so that no caller waits for a
// broker; and it announces, as an [Event] of the Session's, that a person must log in within 48, 24, 6 and 1 hours: once
// each for a login, however many Keepers share its record and however often they start. An announcement that was due
// while none ran is left out for the next one that is; so is one that is longer than the login's whole life.
//
// The zero Keeper is ready; do not copy it. Its methods are safe for concurrent use.
//
//	var keeper brokerauth.Keeper
//	keeper.Add(session)
//	keeper.Run(ctx) // until ctx ends
//
// Renewals are spread so that a second has hardly more of them than any other, even if all tokens were issued at once: a
// Keeper renews a token early where many would end together. A login that has ended, or that the store cannot load, is
// looked at again after a minute and then ever more rarely, up to every 15 minutes. Between renewals a Keeper neither
// calls the broker nor the store.
type Keeper struct {
	mu    sync.Mutex
	kept  map[*Session]*kept
	queue queue
	start time.Time     // the times in kept are counted from here
	slots map[int64]int // how many renewals are planned for a second
	first int64         // no second before it has room
	rate  float64       // how many renewals a second all tokens need
	wake  chan struct{} // there is something to do earlier
}

const (
	keeperWorkers = 64               // renewals at a time
	keeperNap     = 30 * time.Second // a sleeping computer's timers stand still, so the clock is looked at that often
	keeperRetry   = time.Minute      // after a failure that says nothing of when to try again; each further one waits twice as long
	keeperRarest  = 15 * time.Minute
	keeperVisit   = 2 * time.Minute // for one renewal; others' claims, the broker and the store take one at the most
)

// warnings are how long before a login's end it is announced.
var warnings = [...]time.Duration{48 * time.Hour, 24 * time.Hour, 6 * time.Hour, time.Hour}

// errStale keeps a Keeper from asking again and again for what never is fresh.
var errStale = errors.New("the token that was issued is due for renewal already")

// kept is one Session of a Keeper. Its times are nanoseconds since the Keeper's start, by the monotonic clock.
type kept struct {
	session *Session
	index   int     // in the queue; -1: not there, because somebody is at it
	at      int64   // when to look at it
	renew   int64   // when to renew its token; 0: it is not planned
	second  int64   // the one that this is planned for
	issued  int64   // which token that is, by when it was issued
	share   float64 // of the Keeper's rate

	loginBy   int64 // the login's end, in seconds since 1970; 0: none that is known
	loginLife int32 // in seconds; 0: unknown
	within    int32 // the last warning that is told of it, in seconds; 0: none

	failures uint8 // in a row
	known    bool  // its record was looked at
	removed  bool
}

// Add has the Keeper renew s from now on, until it is removed or closed. Adding it again changes nothing.
func (k *Keeper) Add(s *Session) {
	if s == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.init()
	if k.kept[s] != nil {
		return
	}
	e := &kept{session: s, at: k.now()}
	k.kept[s] = e
	k.push(e)
}

// Remove leaves s to its callers. A renewal under way goes on.
func (k *Keeper) Remove(s *Session) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if e := k.kept[s]; e != nil {
		k.drop(e)
	}
}

// Run renews until ctx ends. It returns when nothing that it began is under way but for requests that were sent, which
// Session.Close waits for. It closes no Session.
func (k *Keeper) Run(ctx context.Context) {
	k.mu.Lock()
	k.init()
	k.mu.Unlock()
	var wg sync.WaitGroup
	defer wg.Wait()
	free := make(chan struct{}, keeperWorkers)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for last := time.Now(); ctx.Err() == nil; {
		now := time.Now()
		if slept := now.Round(0).Sub(last.Round(0)) - now.Sub(last); slept.Abs() > 5*time.Second {
			k.replan()
		}
		last = now
		e, wait := k.next()
		if e == nil {
			timer.Reset(min(wait, keeperNap))
			select {
			case <-timer.C:
			case <-k.wake:
			case <-ctx.Done():
			}
			continue
		}
		select {
		case free <- struct{}{}:
			wg.Go(func() {
				k.visit(ctx, e)
				<-free
			})
		case <-ctx.Done():
			k.mu.Lock()
			if !e.removed {
				k.push(e)
			}
			k.mu.Unlock()
		}
	}
}

// init makes the zero Keeper ready. k.mu is held.
func (k *Keeper) init() {
	if k.kept == nil {
		k.kept, k.slots, k.wake = map[*Session]*kept{}, map[int64]int{}, make(chan struct{}, 1)
		k.start = time.Now().Add(-time.Second) // so that no time is zero
	}
}

// now is the time since the Keeper's start.
func (k *Keeper) now() int64 { return int64(time.Since(k.start)) }

// next takes the first Session that is due out of the queue, or says how long there is none.
func (k *Keeper) next() (*kept, time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.queue) == 0 {
		return nil, keeperNap
	}
	if wait := k.queue[0].at - k.now(); wait > 0 {
		return nil, time.Duration(wait)
	}
	return heap.Pop(&k.queue).(*kept), 0
}

// push puts e into the queue. k.mu is held.
func (k *Keeper) push(e *kept) {
	heap.Push(&k.queue, e)
	if e.index == 0 {
		k.nudge()
	}
}

// nudge has Run look at the queue.
func (k *Keeper) nudge() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// drop forgets e. k.mu is held.
func (k *Keeper) drop(e *kept) {
	e.removed = true
	delete(k.kept, e.session)
	if e.index >= 0 {
		heap.Remove(&k.queue, e.index)
		k.free(e)
	}
}

// replan looks at all Sessions anew, since the wall clock has moved.
func (k *Keeper) replan() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, e := range k.queue {
		e.at = k.now()
		if e.known && e.failures == 0 {
			k.plan(e, nil, nil)
		}
	}
	heap.Init(&k.queue)
}

// visit does what is due at e, and puts it back.
func (k *Keeper) visit(ctx context.Context, e *kept) {
	s := e.session
	told := s.failed()
	key, err := s.key()
	var t *Token
	bounded, cancel := context.WithTimeout(ctx, keeperVisit) // whatever the store waits for
	defer cancel()
	if err == nil {
		t, err = k.renewed(bounded, e, key)
	}
	if ctx.Err() == nil && err != nil && e.failures == 0 && s.failed() == told && !errors.Is(err, errClosed) {
		s.emit(Event{Kind: "failed", Key: key, Err: err}) // nobody else sees it
	}
	if t != nil {
		e.loginBy, e.loginLife = 0, 0
		if !t.LoginBy.IsZero() {
			e.loginBy = t.LoginBy.Unix()
		}
		if !t.LoggedInAt.IsZero() {
			e.loginLife = int32(min(t.LoginBy.Sub(t.LoggedInAt)/time.Second, math.MaxInt32))
		}
	}
	warned := true
	if within, _ := e.warning(time.Now()); within != e.within && (err == nil || errors.Is(err, ErrUnavailable)) {
		if warned = s.warn(bounded, key); warned {
			e.within = within
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if errors.Is(err, errClosed) {
		k.drop(e)
	}
	switch {
	case e.removed:
		k.free(e)
		return
	case ctx.Err() == nil:
		k.plan(e, t, err)
		if !warned {
			e.at = min(e.at, k.now()+int64(keeperRetry))
		}
	}
	k.push(e)
}

// renewed renews e's token if that is due. The token that it returns may be expired, and nil if there is none. A trouble
// that passes is no error while the token at hand is valid.
func (k *Keeper) renewed(ctx context.Context, e *kept, key Key) (t *Token, err error) {
	s := e.session
	now := time.Now()
	switch p := s.current.Load(); {
	case p == nil && !e.known:
		// The stored token may be as old as all others': its renewal is planned, and not made now.
		var rec *record
		if rec, err = s.look(ctx, key); err == nil {
			e.known = true
			if rec.hasToken() {
				t = rec.token
			}
		}
	case p == nil || p.renew.passed(now):
		e.known = true
		if _, err = s.await(ctx, key); err == nil {
			// Or somebody else is renewing it, while this one is valid.
			if p := s.current.Load(); p == nil || p.renew.passed(time.Now()) && !p.token.Issued.Before(now.Round(0)) {
				err = errStale
			}
		}
	case e.renew != 0 && e.renew <= int64(now.Sub(k.start)) && e.issued == p.token.Issued.UnixNano():
		_, _, err = s.ride(ctx, key, want{ahead: p.token})
	default:
		e.known = true
	}
	if p := s.current.Load(); p != nil {
		t = p.token
		if errors.Is(err, ErrUnavailable) && !p.renew.passed(time.Now()) {
			err = nil // it was put off
		}
	}
	return t, err
}

// plan says when to look at e again: after its token t was looked at or renewed, or could not be. k.mu is held.
func (k *Keeper) plan(e *kept, t *Token, err error) {
	now := time.Now()
	since := k.now()
	if err != nil {
		k.free(e)
		wait := min(keeperRetry<<min(e.failures, 4), keeperRarest)
		if own := (*Error)(nil); errors.Is(err, ErrUnavailable) && errors.As(err, &own) && own.RetryAfter > 0 {
			wait = min(own.RetryAfter, keeperRarest)
		}
		e.failures = min(e.failures, 100) + 1
		e.at = since + int64(wait) + rand.Int64N(int64(wait)/10+1)
		return
	}
	e.failures = 0
	p := e.session.current.Load()
	switch {
	case p == nil || p.renew.passed(now):
		k.free(e)
		from := since
		if p != nil {
			t = p.token
			if !p.dead.passed(now) { // it may be under way elsewhere
				from += int64(time.Second)
			}
		}
		k.reserve(e, t, k.turn(from), math.MaxInt64)
	case p.renew.wall-now.UnixNano() >= never/2:
		k.free(e)
	case e.issued != p.token.Issued.UnixNano() || e.renew <= since || e.renew > since+int64(p.renew.left(now)):
		k.free(e)
		end := since + int64(max(time.Second, p.renew.left(now)))
		k.reserve(e, p.token, k.room(since, end, p.token, e.session.Provider.Info()), end)
	}
	e.at = math.MaxInt64
	if e.renew != 0 {
		e.at = e.renew
	}
	if _, next := e.warning(now); next > 0 {
		e.at = min(e.at, since+int64(next))
	}
}

// reserve plans the renewal of t, which may be nil, for a second, and for end at the latest. k.mu is held.
func (k *Keeper) reserve(e *kept, t *Token, second, end int64) {
	cycle := 25 * time.Minute
	e.issued = 0
	if t != nil {
		e.issued = t.Issued.UnixNano()
		if life := t.life(); life > 0 {
			cycle = max(time.Second, life-t.margin(e.session.Provider.Info()))
		}
	}
	// Evenly within the second, so that one that begins elsewhere has no more of them.
	n, most := int64(k.slots[second]), int64(k.most())
	e.second, e.renew = second, min(end, second*int64(time.Second)+n%most*int64(time.Second)/most)
	e.share = 1 / cycle.Seconds()
	k.rate += e.share
	k.slots[second]++
}

// free takes back what reserve has planned. k.mu is held.
func (k *Keeper) free(e *kept) {
	if e.renew == 0 {
		return
	}
	if k.slots[e.second]--; k.slots[e.second] == 0 {
		delete(k.slots, e.second)
	}
	k.rate -= e.share
	e.renew, e.share = 0, 0
}

// most is how many renewals are planned for one second: a quarter more than there are on average.
func (k *Keeper) most() int { return 1 + int(1.25*k.rate) }

// room finds a second for t's renewal: one of the last before end, unless too many others are planned for those. Then it
// looks for another ever further away, up to t's beginning. All Keepers of a login look at the same ones: if each chose
// its own, the first of many would come soon after t was issued.
func (k *Keeper) room(from, end int64, t *Token, info Info) int64 {
	from += int64(time.Second) // never now: a token of no life to speak of keeps nobody busy
	span := max(1, end-from)
	late := end - rand.Int64N(span/50+1) // a bit early, so that Keepers of one login do not come together
	best := max(from, late) / int64(time.Second)
	cycle := max(int64(t.life()-t.margin(info)), span)
	seed := fnv.New64a()
	seed.Write([]byte(t.AccessToken))
	shared := rand.New(rand.NewPCG(seed.Sum64(), 0))
	for tries := 0; tries < 24 && k.slots[best] >= k.most(); tries++ {
		at := late - shared.Int64N(max(1, cycle>>max(0, 5-tries/3)))
		if second := at / int64(time.Second); at >= from && k.slots[second] < k.slots[best] {
			best = second
		}
	}
	return best
}

// turn finds the next second for a renewal that is overdue.
func (k *Keeper) turn(from int64) int64 {
	k.first = max(k.first, from/int64(time.Second))
	for k.slots[k.first] >= k.most() {
		k.first++
	}
	return k.first
}

// warning says which warning is the last that is due at now, in seconds; 0: none is. And how long it is to the next one;
// 0: there is none.
func (e *kept) warning(now time.Time) (within int32, next time.Duration) {
	if e.loginBy == 0 {
		return 0, 0
	}
	left := time.Unix(e.loginBy, 0).Sub(now.Round(0))
	return warning(left, time.Duration(e.loginLife)*time.Second)
}

func warning(left, life time.Duration) (within int32, next time.Duration) {
	if left <= 0 {
		return 0, 0
	}
	for _, w := range warnings {
		switch {
		case life > 0 && w >= life: // it would be told right after the login
		case left <= w:
			within = int32(w / time.Second)
		default:
			return within, left - w
		}
	}
	return within, 0
}

// queue is a heap of what is due first.
type queue []*kept

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].at < q[j].at }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

func (q *queue) Push(x any) {
	e := x.(*kept)
	e.index = len(*q)
	*q = append(*q, e)
}

func (q *queue) Pop() any {
	old := *q
	e := old[len(old)-1]
	old[len(old)-1] = nil
	e.index = -1
	*q = old[:len(old)-1]
	return e
}

// failed counts the failures that were told as events.
func (s *Session) failed() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failures
}

// warn tells which warning is due, unless that was told: the record remembers, so that of all processes one tells it. It
// reports whether there is nothing left to tell.
func (s *Session) warn(ctx context.Context, key Key) bool {
	raw, rec, err := s.load(ctx, key)
	if err != nil {
		return false
	}
	if !rec.hasToken() || rec.token.LoginBy.IsZero() {
		return true
	}
	t, now, life := rec.token, time.Now(), time.Duration(0)
	if !t.LoggedInAt.IsZero() {
		life = t.LoginBy.Sub(t.LoggedInAt)
	}
	within, _ := warning(t.LoginBy.Sub(now), life)
	r := &refresh{Session: s, key: key, info: s.Provider.Info(), machine: machine()}
	if v := r.verdict(rec); within == 0 || rec.told.covers(t, within) || v != nil && v.kind() == ErrLoginRequired {
		return true
	}
	if rec.claim != nil && !r.void(rec.claim, now) {
		return false // its holder is about to write the record
	}
	next, err := rec.with(func(c *record) { c.told = &told{LoginBy: t.LoginBy, Within: within} }).encode(key.Provider)
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	swapped, err := s.Store.CompareAndSwap(ctx, key, raw, next)
	if err != nil {
		swapped = s.durable(ctx, key, next)
	}
	if swapped {
		s.emit(Event{Kind: "deadline", Key: key, Within: time.Duration(within) * time.Second, LoginBy: t.LoginBy,
			Err: fmt.Errorf("a person must log in by %s", t.LoginBy.Local().Format("Mon 2 Jan 15:04 MST"))})
	}
	return swapped
}
