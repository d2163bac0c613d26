package main

import (
	"fmt"
	"time"
	_ "time/tzdata" // small containers and Windows have no zones
)

// inTradingWeek warns that a login ends between Monday's open and Friday's close of the US exchanges, in this or the next
// week, and says when to log in instead; empty: it does not.
func inTradingWeek(loginBy, now time.Time) string {
	zone, err := time.LoadLocation("America/New_York")
	if err != nil || loginBy.IsZero() || !now.Before(loginBy) {
		return ""
	}
	end := loginBy.In(zone)
	year, month, day := end.Date()
	monday := day - (int(end.Weekday())+6)%7
	opens := time.Date(year, month, monday, 9, 30, 0, 0, zone)
	closes := time.Date(year, month, monday+4, 16, 0, 0, 0, zone)
	sunday := time.Date(year, month, monday-1, 0, 0, 0, 0, zone)
	if end.Before(opens) || end.After(closes) || sunday.Sub(now) > 7*24*time.Hour {
		return ""
	}
	when := "on Sunday"
	switch {
	case !now.Before(opens):
		when = "before then, after the exchanges close"
	case !now.Before(sunday):
		when = "before Monday 09:30 ET"
	}
	return fmt.Sprintf("%s ET is in the middle of a trading week: log in %s", end.Format("Mon 15:04"), when)
}
