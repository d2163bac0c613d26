package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// period is a flag's duration, in which d is 24 hours: "2d", "1d12h", "6.5d".
type period time.Duration

func (p *period) Set(s string) error {
	d, err := parsePeriod(s)
	*p = period(d)
	return err
}

func (p *period) String() string {
	if *p == 0 {
		return "0" // which no help text shows as a default
	}
	return time.Duration(*p).String()
}

func (p *period) Type() string { return "duration" }

// parsePeriod reads a duration that is not negative.
func parsePeriod(s string) (time.Duration, error) {
	errForm := errors.New(`write it like "90s", "12h", "2d" or "1d12h"`)
	days, rest, found := strings.Cut(s, "d")
	if !found {
		days, rest = "0", s
	}
	if strings.HasPrefix(s, "-") {
		return 0, errors.New("it cannot be negative")
	}
	n, err := strconv.ParseFloat(days, 64)
	if err != nil || strings.Trim(days, "0123456789.") != "" || strings.ContainsAny(rest, "+-") {
		return 0, errForm
	}
	var d time.Duration
	if rest != "" {
		if d, err = time.ParseDuration(rest); err != nil {
			return 0, errForm
		}
	} else if !found {
		return 0, errForm
	}
	const most = 100 * 365 * 24 * time.Hour
	if n > most.Hours()/24 || d > most {
		return 0, errors.New("it is longer than a hundred years")
	}
	return time.Duration(n*24*float64(time.Hour)) + d, nil
}

// inWords is a duration in its two greatest units: "6 d 2 h", "23 min", "45 s".
func inWords(d time.Duration) string {
	day := 24 * time.Hour
	switch d = d.Abs(); {
	case d >= day:
		return two(int(d/day), "d", int(d%day/time.Hour), "h")
	case d >= time.Hour:
		return two(int(d/time.Hour), "h", int(d%time.Hour/time.Minute), "min")
	case d >= time.Minute:
		return fmt.Sprintf("%d min", d/time.Minute)
	}
	return fmt.Sprintf("%d s", d/time.Second)
}

func two(n int, unit string, m int, part string) string {
	if m == 0 {
		return fmt.Sprintf("%d %s", n, unit)
	}
	return fmt.Sprintf("%d %s %d %s", n, unit, m, part)
}

// moment is a time in the zone of whoever reads it, which it names.
func moment(t time.Time) string { return t.Local().Format("Mon 2 Jan 15:04 MST") }
