package redis_test

import (
	"context"
	"fmt"

	goredis "github.com/redis/go-redis/v9"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/storage/redis"
)

func Example() {
	client := goredis.NewUniversalClient(&goredis.UniversalOptions{Addrs: []string{"127.0.0.1:6379"}, ContextTimeoutEnabled: true})
	defer client.Close()
	store, err := redis.New(client, "") // several Sessions, processes and hosts may share it
	if err != nil {
		fmt.Println(err)
		return
	}
	key := brokerauth.Key{Provider: "schwab", Identity: "3fa8", Profile: "default"}
	fmt.Println(store.Where(key))

	ctx, cancel := context.WithCancel(context.Background())
	cancel() // so that the example asks no server
	_, err = store.Load(ctx, key)
	fmt.Println(err)
	// Output:
	// Redis key brokerauth:{schwab.3fa8.default}
	// redis: context canceled
}
