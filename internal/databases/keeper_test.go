package databases_test

func keeper() {}
