package engine

import (
	"net"
	"sync"
	"testing"
)

// Proxy stands between a client and a server, and can lose an answer.
type Proxy struct {
	Addr string

	mu    sync.Mutex
	match func(request []byte) bool
	lost  int
	down  bool
	conns map[net.Conn]bool
}

// NewProxy returns one in front of the server at addr.
func NewProxy(t testing.TB, addr string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Addr: l.Addr().String(), conns: map[net.Conn]bool{}}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", addr)
			if err != nil {
				client.Close()
				continue
			}
			if !p.add(client, server) {
				continue
			}
			c := &conversation{p: p, client: client, server: server}
			all.Go(c.requests)
			all.Go(c.answers)
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.Cut()
		all.Wait()
	})
	return p
}

func (p *Proxy) add(conns ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		if p.down {
			c.Close()
		} else {
			p.conns[c] = true
		}
	}
	return !p.down
}

// LoseAnswer has the server get the next request that matches and do what it says, and the connection end when the
// answer comes.
func (p *Proxy) LoseAnswer(match func(request []byte) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.match = match
}

// Lost is how many answers were lost.
func (p *Proxy) Lost() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lost
}

// Cut ends all connections, and those to come as soon as they begin, until Restore.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = true
	for c := range p.conns {
		c.Close()
	}
	clear(p.conns)
}

// Restore lets connections through again.
func (p *Proxy) Restore() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = false
}

// conversation is one client's.
type conversation struct {
	p              *Proxy
	client, server net.Conn
	mu             sync.Mutex
	lose           bool
}

func (c *conversation) end() {
	c.client.Close()
	c.server.Close()
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	delete(c.p.conns, c.client)
	delete(c.p.conns, c.server)
}

func (c *conversation) requests() {
	defer c.end()
	b := make([]byte, 1<<20)
	for {
		n, err := c.client.Read(b)
		if n > 0 {
			c.p.mu.Lock()
			if c.p.match != nil && c.p.match(b[:n]) {
				c.p.match = nil
				c.mu.Lock()
				c.lose = true
				c.mu.Unlock()
			}
			c.p.mu.Unlock()
			if _, err := c.server.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (c *conversation) answers() {
	defer c.end()
	b := make([]byte, 1<<20)
	for {
		n, err := c.server.Read(b)
		c.mu.Lock()
		lose := c.lose
		c.mu.Unlock()
		if lose && n > 0 {
			c.p.mu.Lock()
			c.p.lost++
			c.p.mu.Unlock()
			return
		}
		if n > 0 {
			if _, err := c.client.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
