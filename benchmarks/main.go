// Command benchmarks measures brokerauth against its goals and its peers, and prints a table of ratios:
//
//	cd benchmarks && GOWORK=off go run .
//
// It runs the benchmarks that stand beside the code and those of the peers in this folder, several rounds of all of them
// in turn, and gives the median of each round's ratio: what the machine does otherwise then bears on both sides alike.
// It takes about four minutes, with -rounds 3 three, and a quiet machine.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/perf/benchfmt"
)

// row is one line of the table: a figure of one benchmark, or its ratio to the same figure of another.
type row struct {
	what     string
	of, per  figure // per zero: of as it stands
	decimals int
	goal     goal
}

// goal is what a figure should be; zero: whatever it is.
type goal struct {
	text string
	met  func(float64) bool
}

func atMost(limit float64) goal {
	return goal{fmt.Sprintf("at most %g", limit), func(v float64) bool { return v <= limit }}
}

func atLeast(limit float64) goal {
	return goal{fmt.Sprintf("at least %g", limit), func(v float64) bool { return v >= limit }}
}

func moreThan(limit float64) goal {
	return goal{fmt.Sprintf("more than %g", limit), func(v float64) bool { return v > limit }}
}

// figure is what one benchmark reports in one unit.
type figure struct{ name, unit string }

// suites are the folders with benchmarks, and which of them to run for how long.
var suites = []struct {
	dir, bench, time string
	alone            bool // on one core; what it reports has that behind its name
	once             bool // in the first round: it counts, and measures no time
}{
	{dir: "..", bench: "^Benchmark(Token|TokenParallel)$", time: "300ms"},
	{dir: "..", bench: "^BenchmarkTransport$", time: "5x"},
	{dir: "..", bench: "^BenchmarkTokenParallel$/^session$", time: "300ms", alone: true},
	{dir: "..", bench: "^BenchmarkStorm$", time: "5x"},
	{dir: "..", bench: "^BenchmarkKeeper$", time: "1x", once: true},
	{dir: "../storage/disk", bench: "^Benchmark(CompareAndSwap|Floor)$", time: "300ms"},
	{dir: "../cmd/brokerauth", bench: "^BenchmarkColdStart$", time: "100x"},
	{dir: ".", bench: ".", time: "300ms"},
}

const alone = " alone"

func ns(name string) figure { return figure{name, "sec/op"} }

var rows = []row{
	{what: "a fresh token, one goroutine / atomic load and clock", of: ns("Token/session"), per: ns("Token/floor"), goal: atMost(1.15), decimals: 2},
	{what: "its allocations", of: figure{"Token/session", "allocs/op"}, goal: atMost(0)},
	{what: "x/oauth2's ReuseTokenSource on all cores / a fresh token", of: ns("TokenParallel/oauth2"), per: ns("TokenParallel/session"), goal: atLeast(3), decimals: 2},
	{what: "a fresh token on one core / on all of them", of: ns("TokenParallel/session" + alone), per: ns("TokenParallel/session"), goal: moreThan(1), decimals: 2},
	{what: "the transport / x/oauth2's, in a program that holds 16 MB", of: figure{"Transport/16MB", "×oauth2"}, goal: atMost(0.6), decimals: 2},
	{what: "its allocations", of: figure{"Transport/16MB", "allocs/request"}, goal: atMost(5)},
	{what: "the transport / x/oauth2's, in a program that holds nothing", of: figure{"Transport/empty", "×oauth2"}, goal: atMost(0.6), decimals: 2},
	{what: "a swap on disk, 2 KB / write, fsync, rename, fsync", of: ns("CompareAndSwap"), per: ns("Floor"), goal: atMost(1.3), decimals: 2},
	{what: "32 processes, one expired token: requests to the broker", of: figure{"Storm", "requests"}, goal: atMost(1)},
	{what: "the same until all have it / start-up and the request", of: figure{"Storm", "×floor"}, goal: atMost(1.3), decimals: 2},
	{what: "100,000 sessions of a Keeper: one beyond its token, bytes", of: figure{"Keeper", "B/session"}, goal: atMost(1024)},
	{what: "the same: peak requests a second / their mean", of: figure{"Keeper", "peak/mean"}, goal: atMost(2), decimals: 2},
	{what: "brokerauth token from disk / an empty program", of: figure{"ColdStart", "×empty"}, goal: atMost(3), decimals: 2},
	{what: "the same without cgo / an empty program", of: figure{"ColdStart", "static×empty"}, decimals: 2},
	{what: "a program that imports net/http alone / an empty one", of: figure{"ColdStart", "http×empty"}, decimals: 2},
	{what: "a program that prints the token by the library / an empty one", of: figure{"ColdStart", "library×empty"}, decimals: 2},
	{what: "MSAL for Go's AcquireTokenSilent / a fresh token", of: ns("MSAL"), per: ns("Token/session")},
	{what: "certmagic's file storage with its lock / a swap on disk", of: ns("Certmagic"), per: ns("CompareAndSwap"), decimals: 1},
}

func main() {
	rounds := flag.Int("rounds", 5, "how often to measure")
	flag.Parse()
	if err := measure(*rounds); err != nil {
		fmt.Fprintln(os.Stderr, "benchmarks:", err)
		os.Exit(1)
	}
}

func measure(rounds int) error {
	found := make([]map[figure]float64, rounds)
	cpu := ""
	for i := range found {
		found[i] = map[figure]float64{}
		for _, s := range suites {
			if s.once && i > 0 {
				continue
			}
			fmt.Fprintf(os.Stderr, "round %d of %d: %s %s\n", i+1, rounds, s.dir, s.bench)
			cores, behind := runtime.GOMAXPROCS(0), ""
			if s.alone {
				cores, behind = 1, alone
			}
			cmd := exec.Command("go", "test", "-run", "^$", "-bench", s.bench, "-benchtime", s.time, "-benchmem",
				"-cpu", strconv.Itoa(cores), ".")
			cmd.Dir = s.dir
			if s.dir != "." {
				cmd.Env = append(os.Environ(), "GOWORK=") // the repository's own
			}
			out, err := cmd.CombinedOutput()
			if err != nil {
				return fmt.Errorf("%s in %s: %w\n%s", s.bench, s.dir, err, out)
			}
			for r := benchfmt.NewReader(bytes.NewReader(out), s.dir); r.Scan(); {
				result, ok := r.Result().(*benchfmt.Result)
				if !ok {
					continue
				}
				cpu = result.GetConfig("cpu")
				name := strings.TrimSuffix(string(result.Name), fmt.Sprintf("-%d", cores))
				for _, v := range result.Values {
					found[i][figure{name + behind, v.Unit}] = v.Value
				}
			}
		}
	}
	fmt.Printf("%s, %d cores, %s, %s; medians of %d rounds\n\n", strings.TrimSpace(cpu), runtime.NumCPU(), runtime.GOOS, runtime.Version(), rounds)
	fmt.Println("| what | figure | lowest to highest | goal | met |")
	fmt.Println("| --- | --- | --- | --- | --- |")
	for _, r := range rows {
		fmt.Println(r.line(found))
	}
	return nil
}

func (r row) line(found []map[figure]float64) string {
	var values []float64
	for _, round := range found {
		v, ok := round[r.of]
		if ok && r.per != (figure{}) {
			var other float64
			other, ok = round[r.per]
			v /= other
		}
		if ok {
			values = append(values, v)
		}
	}
	if len(values) == 0 {
		return fmt.Sprintf("| %s | not measured | | | |", r.what)
	}
	slices.Sort(values)
	median := values[len(values)/2]
	met := ""
	if r.goal.met != nil {
		if met = "no"; r.goal.met(median) {
			met = "yes"
		}
	}
	return fmt.Sprintf("| %s | %.*f | %.*f to %.*f | %s | %s |", r.what, r.decimals, median,
		r.decimals, values[0], r.decimals, values[len(values)-1], r.goal.text, met)
}
